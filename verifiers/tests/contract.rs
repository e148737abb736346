//! Every built-in verifier meets the contract.

use tallow_verifiers::{Verifiers, contract::check_verifier};

#[test]
fn every_builtin_verifier_meets_the_contract() {
    let verifiers = Verifiers::builtin();
    let breaches: Vec<String> = verifiers
        .entries()
        .iter()
        .filter_map(|entry| check_verifier(entry, &verifiers).err())
        .flatten()
        .collect();
    assert!(breaches.is_empty(), "{}", breaches.join("\n"));
}
