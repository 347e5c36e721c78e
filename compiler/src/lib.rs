//! How an adapter graph becomes fast: passes, plan, code
