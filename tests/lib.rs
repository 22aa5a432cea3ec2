//! Shared helpers of the tests, benchmarks and the demo that need root and a kernel.

pub mod lab;
