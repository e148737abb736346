//! Any text may be searched for an answer: no panic, and what is found is a part of it.

#![no_main]

use libfuzzer_sys::fuzz_target;
use tallow_verifiers::math::extract::{Place, Search, extract};

fuzz_target!(|text: &str| {
    for (boxes, math, numbers) in [(true, true, true), (false, true, false), (true, false, true)] {
        for require in [false, true] {
            let search = Search { boxes, require_box: false, require_anchor: require, math, numbers };
            if let Ok(found) = extract(text, &search)
                && found.place != Place::Box
            {
                assert!(text.contains(found.answer.as_ref()));
            }
        }
    }
});
