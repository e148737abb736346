// Rows of matrices: gathered, scattered, summed, biased, converted.

// out[i] = table[ids[i]]; a block for each row.
extern "C" __global__ void gather_rows(const element* __restrict__ table,
                                       const unsigned* __restrict__ ids,
                                       element* __restrict__ out, unsigned width) {
    const element* from = table + static_cast<size_t>(ids[blockIdx.x]) * width;
    element* to = out + static_cast<size_t>(blockIdx.x) * width;
    for (unsigned i = threadIdx.x; i < width; i += blockDim.x) to[i] = from[i];
}

// The sum of the rows of `g` that one segment of `order` names, at one column.
__device__ __forceinline__ float segment_sum(const element* g, const unsigned* order,
                                             unsigned first, unsigned end, unsigned width,
                                             unsigned column) {
    float sum = 0.0f;
    for (unsigned i = first; i < end; ++i)
        sum += widen(g[static_cast<size_t>(order[i]) * width + column]);
    return sum;
}

// table[targets[s]] += the sum of the rows order[starts[s]..starts[s + 1]] of g: the rows are
// sorted by where they go, so that each place is written by one block. A block for each segment.
extern "C" __global__ void add_rows(const element* __restrict__ g,
                                    const unsigned* __restrict__ order,
                                    const unsigned* __restrict__ starts,
                                    const unsigned* __restrict__ targets,
                                    float* __restrict__ table, unsigned width) {
    const unsigned first = starts[blockIdx.x], end = starts[blockIdx.x + 1];
    float* to = table + static_cast<size_t>(targets[blockIdx.x]) * width;
    for (unsigned i = threadIdx.x; i < width; i += blockDim.x)
        to[i] += segment_sum(g, order, first, end, width, i);
}

// The same into elements that hold zero.
extern "C" __global__ void scatter_rows(const element* __restrict__ g,
                                        const unsigned* __restrict__ order,
                                        const unsigned* __restrict__ starts,
                                        const unsigned* __restrict__ targets,
                                        element* __restrict__ out, unsigned width) {
    const unsigned first = starts[blockIdx.x], end = starts[blockIdx.x + 1];
    element* to = out + static_cast<size_t>(targets[blockIdx.x]) * width;
    for (unsigned i = threadIdx.x; i < width; i += blockDim.x)
        to[i] = narrow(segment_sum(g, order, first, end, width, i));
}

// y = x + bias, row by row; y may be x. A block for each row.
extern "C" __global__ void add_bias(const element* x, const element* __restrict__ bias, element* y,
                                    unsigned width) {
    const size_t start = static_cast<size_t>(blockIdx.x) * width;
    for (unsigned i = threadIdx.x; i < width; i += blockDim.x)
        y[start + i] = narrow(widen(x[start + i]) + widen(bias[i]));
}

// partial[chunk] = the sum of the rows of one chunk. Grid: columns by chunks; a thread a column.
extern "C" __global__ void sum_row_chunks(const element* __restrict__ x, float* __restrict__ partial,
                                          unsigned rows, unsigned width, unsigned chunk) {
    const unsigned column = blockIdx.x * blockDim.x + threadIdx.x;
    if (column >= width) return;
    const unsigned first = blockIdx.y * chunk, end = min(first + chunk, rows);
    float sum = 0.0f;
    for (unsigned row = first; row < end; ++row)
        sum += widen(x[static_cast<size_t>(row) * width + column]);
    partial[static_cast<size_t>(blockIdx.y) * width + column] = sum;
}

// out += the sum of the partial sums, in the order of the chunks. A thread a column.
extern "C" __global__ void add_partial_rows(const float* __restrict__ partial,
                                            float* __restrict__ out, unsigned chunks,
                                            unsigned width) {
    const unsigned column = blockIdx.x * blockDim.x + threadIdx.x;
    if (column >= width) return;
    float sum = 0.0f;
    for (unsigned i = 0; i < chunks; ++i) sum += partial[static_cast<size_t>(i) * width + column];
    out[column] += sum;
}

extern "C" __global__ void narrow_values(const float* __restrict__ x, element* __restrict__ y,
                                         unsigned long long count) {
    for (size_t i = grid_index(); i < count; i += grid_size()) y[i] = narrow(x[i]);
}

extern "C" __global__ void widen_values(const element* __restrict__ x, float* __restrict__ y,
                                        unsigned long long count) {
    for (size_t i = grid_index(); i < count; i += grid_size()) y[i] = widen(x[i]);
}
