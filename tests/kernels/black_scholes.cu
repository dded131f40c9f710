// Option prices: normcdff, logf, expf, sqrtf, fmaf and a structure returned by value.
struct Prices {
    float call, put;
};
__device__ Prices priced(float spot, float strike, float years, float rate, float volatility) {
    const float spread = volatility * sqrtf(years);
    const float d1 = fmaf(fmaf(0.5f * volatility, volatility, rate), years, logf(spot / strike)) / spread;
    const float discounted = strike * expf(-rate * years);
    const float call = spot * normcdff(d1) - discounted * normcdff(d1 - spread);
    return {call, call + discounted - spot};
}

extern "C" __global__ void options(const float3* given, float2* prices, float rate, float volatility, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    const Prices p = priced(given[i].x, given[i].y, given[i].z, rate, volatility);
    prices[i] = make_float2(p.call, p.put);
}
