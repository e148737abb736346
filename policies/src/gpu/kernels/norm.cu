// Root-mean-square norm: y = x s w with s = 1 / sqrt(mean(x²) + eps), a block for each row. With
// g the gradient of y:
//
//     dx = s (g w) - x s³ mean(g w x)        dw = Σ_t g_t x_t s_t

extern "C" __global__ void rms_norm(const element* __restrict__ x,
                                    const element* __restrict__ weight, element* __restrict__ y,
                                    unsigned width, float eps) {
    const size_t start = static_cast<size_t>(blockIdx.x) * width;
    float squares = 0.0f;
    for (unsigned i = threadIdx.x; i < width; i += blockDim.x) {
        const float value = widen(x[start + i]);
        squares += value * value;
    }
    const float s = 1.0f / sqrtf(block_sum(squares) / width + eps);
    for (unsigned i = threadIdx.x; i < width; i += blockDim.x)
        y[start + i] = narrow(widen(x[start + i]) * s * widen(weight[i]));
}

// dx, added to what is there if `accumulate`; and s of each row, for the weight's gradient.
extern "C" __global__ void rms_norm_backward(const element* __restrict__ x,
                                             const element* __restrict__ weight,
                                             const element* __restrict__ g,
                                             element* __restrict__ dx, float* __restrict__ scales,
                                             unsigned width, float eps, unsigned accumulate) {
    const size_t start = static_cast<size_t>(blockIdx.x) * width;
    float squares = 0.0f, products = 0.0f;
    for (unsigned i = threadIdx.x; i < width; i += blockDim.x) {
        const float value = widen(x[start + i]);
        squares += value * value;
        products += widen(g[start + i]) * widen(weight[i]) * value;
    }
    const float s = 1.0f / sqrtf(block_sum(squares) / width + eps);
    const float pull = s * s * s * (block_sum(products) / width);
    if (threadIdx.x == 0) scales[blockIdx.x] = s;
    for (unsigned i = threadIdx.x; i < width; i += blockDim.x) {
        const float d = s * (widen(g[start + i]) * widen(weight[i])) - widen(x[start + i]) * pull;
        dx[start + i] = narrow(accumulate ? widen(dx[start + i]) + d : d);
    }
}

// partial[chunk] = Σ g x s over the rows of one chunk. Grid: columns by chunks; a thread a column.
extern "C" __global__ void rms_norm_weight_chunks(const element* __restrict__ x,
                                                  const element* __restrict__ g,
                                                  const float* __restrict__ scales,
                                                  float* __restrict__ partial, unsigned rows,
                                                  unsigned width, unsigned chunk) {
    const unsigned column = blockIdx.x * blockDim.x + threadIdx.x;
    if (column >= width) return;
    const unsigned first = blockIdx.y * chunk, end = min(first + chunk, rows);
    float sum = 0.0f;
    for (unsigned row = first; row < end; ++row) {
        const size_t at = static_cast<size_t>(row) * width + column;
        sum += widen(g[at]) * widen(x[at]) * scales[row];
    }
    partial[static_cast<size_t>(blockIdx.y) * width + column] = sum;
}
