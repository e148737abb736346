//! Settings of the whole process that training on the CPU wants before its first tensor.
//!
//! Two defaults cost a small policy half of its training step:
//!
//! - glibc hands freed memory back to the system and faults it in again each step, because
//!   a gradient graph frees megabytes at once. It is told to keep them.
//! - candle adds gradients on a pool of spinning threads of its own, which fight rayon's for
//!   the cores. The pool is limited to the caller; the operations here use rayon.

#![expect(unsafe_code, reason = "the C library's settings and the environment")]

/// Applies the settings, unless the environment already says otherwise. Call it first thing
/// in `main`: with other threads about, the environment is left alone.
pub fn prepare_process() {
    keep_freed_memory();
    const CANDLE_THREADS: &str = "CANDLE_NUM_THREADS";
    if std::env::var_os(CANDLE_THREADS).is_none() && this_is_the_only_thread() {
        // SAFETY: no other thread exists that could read the environment meanwhile.
        unsafe { std::env::set_var(CANDLE_THREADS, "1") };
    }
}

/// Asks for large pages under memory that is about to be filled: what is read in many small pieces
/// then costs far fewer page table walks. A wish only; where it is refused nothing changes.
pub(crate) fn prefer_large_pages<T>(memory: &mut Vec<T>) {
    #[cfg(target_os = "linux")]
    {
        const LARGE_PAGE: usize = 2 << 20;
        let start = memory.as_mut_ptr() as usize;
        let end = start + memory.capacity() * size_of::<T>();
        let (start, end) = (start.next_multiple_of(LARGE_PAGE), end / LARGE_PAGE * LARGE_PAGE);
        if start < end {
            // SAFETY: the range lies within the vector's allocation, and the advice changes no
            // value in it.
            unsafe { libc::madvise(start as *mut libc::c_void, end - start, libc::MADV_HUGEPAGE) };
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = memory;
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn keep_freed_memory() {
    /// The largest block taken from the heap rather than mapped by itself; the library's limit.
    const LARGEST_FROM_HEAP: libc::c_int = 32 << 20;
    /// Free memory at the heap's end that is kept.
    const KEPT: libc::c_int = 1 << 30;
    // SAFETY: mallopt may be called at any time, and refuses values it cannot use.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, LARGEST_FROM_HEAP);
        libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT);
    }
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn keep_freed_memory() {}

fn this_is_the_only_thread() -> bool {
    std::fs::read_dir("/proc/self/task").is_ok_and(|tasks| tasks.count() == 1)
}
