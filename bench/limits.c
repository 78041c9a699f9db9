// Bandwidth limits of a CPU: the reads a kernel must do, with nothing computed from them.
//
// Threads are plain pthreads that live for one call: a second OpenMP runtime beside torch's would
// spin and disturb the timings that follow.
#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

enum { MAX_THREADS = 256 };

typedef uint64_t vector __attribute__((vector_size(64), aligned(4), may_alias));
typedef uint64_t quarter __attribute__((vector_size(16), aligned(4), may_alias));
typedef uint32_t word __attribute__((may_alias));

typedef struct {
  const char* table;
  const int32_t* index;
  int64_t begin, end, row_bytes;
  int prefetch;
  char* copy;
  uint64_t sum;
} Task;

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

// Reads whole rows in the order of `index`; exclusive-or has a latency of one cycle, so that the
// reads and not the arithmetic set the pace.
static void* read_rows(void* argument) {
  Task* task = argument;
  const int64_t row = task->row_bytes, vectors = row / 64, quarters = row % 64 / 16,
                words = row % 16 / 4;
  vector even = {0}, odd = {0};
  quarter four = {0};
  word rest = 0;
  for (int64_t at = task->begin; at < task->end; ++at) {
    if (task->prefetch && at + task->prefetch < task->end) {
      const char* ahead = task->table + row * task->index[at + task->prefetch];
      for (int64_t byte = 0; byte < row; byte += 64) __builtin_prefetch(ahead + byte);
    }
    const char* from = task->table + row * task->index[at];
    int64_t j = 0;
    for (; j + 1 < vectors; j += 2) {
      even ^= *(const vector*)(from + 64 * j);
      odd ^= *(const vector*)(from + 64 * j + 64);
    }
    if (j < vectors) even ^= *(const vector*)(from + 64 * j);
    const quarter* fours = (const quarter*)(from + 64 * vectors);
    for (int64_t f = 0; f < quarters; ++f) four ^= fours[f];
    const word* tail = (const word*)(fours + quarters);
    for (int64_t w = 0; w < words; ++w) rest ^= tail[w];
  }
  even ^= odd;
  task->sum = rest ^ four[0] ^ four[1];
  for (int lane = 0; lane < 8; ++lane) task->sum ^= even[lane];
  return NULL;
}

static void* copy_bytes(void* argument) {
  Task* task = argument;
  // memcpy streams past the caches at this size
  memcpy(task->copy + task->begin, task->table + task->begin, (size_t)(task->end - task->begin));
  return NULL;
}

static double run(void* (*work)(void*), Task* tasks, int64_t threads) {
  pthread_t ids[MAX_THREADS];
  const double start = now();
  for (int t = 1; t < threads; ++t) pthread_create(&ids[t], NULL, work, &tasks[t]);
  work(&tasks[0]);
  for (int t = 1; t < threads; ++t) pthread_join(ids[t], NULL);
  return now() - start;
}

static char* huge_pages(size_t bytes) {
  const size_t page = (size_t)2 << 20;
  char* memory = aligned_alloc(page, (bytes + page - 1) / page * page);
  if (memory) {
    madvise(memory, bytes, MADV_HUGEPAGE);
    memset(memory, 1, bytes);
  }
  return memory;
}

// Bytes per second of reading `count` random rows of a table; the best of `repeats` runs at each
// of four prefetch distances. 0 when there is no memory.
double gather_bandwidth(int64_t row_bytes, int64_t table_bytes, const int32_t* index, int64_t count,
                        int64_t threads, int64_t repeats) {
  static const int distances[] = {0, 8, 16, 32};
  Task tasks[MAX_THREADS];
  volatile uint64_t sink = 0;
  double best = 0;
  char* table = huge_pages((size_t)table_bytes);
  if (!table) return 0;
  for (int d = 0; d < 4; ++d) {
    for (int r = 0; r < repeats; ++r) {
      for (int t = 0; t < threads; ++t) {
        tasks[t] = (Task){
            table, index, count * t / threads, count * (t + 1) / threads, row_bytes, distances[d],
            NULL,  0};
      }
      const double rate = (double)(count * row_bytes) / run(read_rows, tasks, threads);
      if (rate > best) best = rate;
      for (int t = 0; t < threads; ++t) sink ^= tasks[t].sum;
    }
  }
  free(table);
  return best;
}

// Bytes read plus bytes written per second of a copy; the best of `repeats`. 0 without memory.
double copy_bandwidth(int64_t bytes, int64_t threads, int64_t repeats) {
  Task tasks[MAX_THREADS];
  double best = 0;
  char* from = huge_pages((size_t)bytes);
  char* to = huge_pages((size_t)bytes);
  for (int r = 0; from && to && r < repeats; ++r) {
    for (int t = 0; t < threads; ++t) {
      tasks[t] = (Task){from, NULL, bytes * t / threads, bytes * (t + 1) / threads, 0, 0, to, 0};
    }
    const double rate = 2.0 * (double)bytes / run(copy_bytes, tasks, threads);
    if (rate > best) best = rate;
  }
  free(from);
  free(to);
  return best;
}
