// What gpu.h needs of CUDA, on a processor. Two threads do the work of a block; the blocks of a launch run one by one.
#include <math.h>

#include <barrier>
#include <thread>
#include <vector>

#define ENTRY static void
#define CONSTANT [[maybe_unused]] static const int
#define DEVICE static inline

struct float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};

static thread_local int thread_number, block_column, block_row;
static std::barrier<> *block_barrier;
static int thread() { return thread_number; }
constexpr int threads() { return 2; }
static int block_x() { return block_column; }
static int block_y() { return block_row; }
static void barrier() { block_barrier->arrive_and_wait(); }
static void atomicAdd(unsigned long long *number, unsigned long long more) {
    __atomic_fetch_add(number, more, __ATOMIC_RELAXED);
}

alignas(16) static char block_memory[1 << 20];
template <class T> static T &shared_memory() { return *reinterpret_cast<T *>(block_memory); }

template <class Kernel, class Arguments>
static void launch(Kernel kernel, const Arguments &arguments, int columns, int rows) {
    std::barrier<> all(threads());
    block_barrier = &all;
    std::vector<std::thread> running;
    for (int number = 0; number < threads(); number++)
        running.emplace_back([=, &arguments] {
            thread_number = number;
            for (int row = 0; row < rows; row++)
                for (int column = 0; column < columns; column++) {
                    block_row = row, block_column = column;
                    kernel(arguments);
                    barrier();
                }
        });
    for (auto &thread : running) thread.join();
}
