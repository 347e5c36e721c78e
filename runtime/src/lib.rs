//! Where compiled adapter models run: kernels, memory, threads, loading and calling
