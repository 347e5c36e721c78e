//! Engraft: a graph IR and compiler for adapter architectures on CPUs.
