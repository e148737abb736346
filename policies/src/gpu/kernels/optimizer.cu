// AdamW in one pass, and sums of squares. Each block leaves one partial sum; the host adds them in
// the order of the blocks.

extern "C" __global__ void square_chunks(const float* __restrict__ x, double* __restrict__ partial,
                                         unsigned long long count) {
    double sum = 0.0;
    for (size_t i = grid_index(); i < count; i += grid_size()) {
        const double value = x[i];
        sum += value * value;
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

// One step of one tensor (see the host's optimizer for the scalars); `copy`, where there is one,
// receives the new weights as elements, `partial` the squared length of the change.
extern "C" __global__ void adamw(float* __restrict__ weights, float* __restrict__ mean,
                                 float* __restrict__ square, const float* __restrict__ gradient,
                                 element* __restrict__ copy, double* __restrict__ partial,
                                 unsigned long long count, float keep, float clip_scale,
                                 float beta1, float beta2, float mean_share, float square_share,
                                 float rate, float square_root_correction, float eps) {
    double sum = 0.0;
    for (size_t i = grid_index(); i < count; i += grid_size()) {
        const float g = gradient[i] * clip_scale;
        const float m = beta1 * mean[i] + mean_share * g;
        const float v = beta2 * square[i] + square_share * g * g;
        mean[i] = m;
        square[i] = v;
        const float old = weights[i];
        const float changed = old * keep - rate * m / (sqrtf(v) / square_root_correction + eps);
        const float change = changed - old;
        weights[i] = changed;
        if (copy != nullptr) copy[i] = narrow(changed);
        sum += static_cast<double>(change) * change;
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}
