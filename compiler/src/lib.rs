//! How an adapter graph becomes fast: passes, plan, code

pub mod check;
pub mod passes;
pub mod pipeline;
pub mod trace;
