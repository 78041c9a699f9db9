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
