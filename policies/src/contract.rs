//! Checks every decoder must pass.
