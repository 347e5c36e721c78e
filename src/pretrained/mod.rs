//! Whole models that others trained: what is needed around the network, each part in a file of its own.

pub mod sampling;
