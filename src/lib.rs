//! Tallow.
