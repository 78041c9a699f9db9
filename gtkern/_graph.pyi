import numpy as np
import numpy.typing as npt

def best_expander(
    algorithm: str,
    num_nodes: int,
    degree: int,
    seed: int,
    max_tries: int,
    least_gap: float,
    residual: float,
    remove_duplicates: bool,
) -> tuple[npt.NDArray[np.int64], float]: ...
def spectral_gap(edge_index: npt.NDArray[np.int64], num_nodes: int, residual: float) -> float: ...
def hop_distances(
    edge_index: npt.NDArray[np.int64], ptr: npt.NDArray[np.int64], max_hops: int, threads: int
) -> npt.NDArray[np.int16]: ...
def shortest_path_edges(
    edge_index: npt.NDArray[np.int64], ptr: npt.NDArray[np.int64], max_length: int, threads: int
) -> npt.NDArray[np.int32]: ...
def return_probabilities(
    edge_index: npt.NDArray[np.int64], ptr: npt.NDArray[np.int64], steps: int, threads: int
) -> npt.NDArray[np.float32]: ...
def gather_segments(
    rows: npt.NDArray[np.uint8],
    begins: npt.NDArray[np.int64],
    counts: npt.NDArray[np.int64],
    out: npt.NDArray[np.uint8],
) -> None: ...
