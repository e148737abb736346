//! Memories that are put back as they were, so that an instance can serve one program after the
//! other.
//!
//! A fresh instance of CPython costs 0.6 ms of bookkeeping and, as it runs, some 600 page faults,
//! more than most programs' own work; and faults of several threads wait for one another. Here an
//! instance's memory is a private mapping of the snapshot's file: pages that are written become
//! copies, the kernel's page map (`/proc/self/pagemap`) tells which, and exactly these get the
//! snapshot's content back. They stay mapped, so the next program faults on few.
//!
//! What makes this as good as a fresh instance: a program can write to its memory and to nothing
//! else. Its stack pointer is restored by every call that returns; an instance whose call did not
//! return, or whose memory has grown, is given up (`Guest::put_back`). Host-side state
//! (`wasi.rs`) is made anew.
//!
//! Where there is no page map, instances are fresh ones of wasmtime's pool.

use std::{
    cell::RefCell,
    fs::File,
    io,
    os::{
        fd::{AsRawFd, FromRawFd},
        unix::fs::FileExt,
    },
    ptr, slice,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
};

use wasmtime::{LinearMemory, MemoryCreator, MemoryType};

/// Bytes of a page of the page map.
const PAGE: usize = 4096;
/// More than this is not put back but given up with its instance.
const MOST_WRITTEN: usize = 128 << 20;

/// Of an entry of the page map (Documentation/admin-guide/mm/pagemap.rst): the page is in memory, it
/// is in swap, it belongs to a file.
const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;
const OF_FILE: u64 = 1 << 61;

thread_local! {
    /// The memories made on this thread since [`made_by`] began.
    static MADE: RefCell<Vec<Arc<Region>>> = const { RefCell::new(Vec::new()) };
}

/// The page map, if this kernel has one that tells what is needed.
fn page_map() -> Option<&'static File> {
    static MAP: OnceLock<Option<File>> = OnceLock::new();
    MAP.get_or_init(|| {
        // SAFETY: asks for a number.
        #[expect(unsafe_code, reason = "a system call")]
        let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
        let map = File::open("/proc/self/pagemap").ok()?;
        // A page that is surely written must be seen as such.
        let written = vec![1_u8; 2 * PAGE];
        let address = written.as_ptr().addr().next_multiple_of(PAGE);
        let mut entry = [0; 8];
        map.read_exact_at(&mut entry, (address / PAGE * 8) as u64).ok()?;
        let entry = u64::from_ne_bytes(entry);
        let told = entry & PRESENT != 0 && entry & OF_FILE == 0;
        (page == PAGE as i64 && told).then_some(map)
    })
    .as_ref()
}

/// Whether memories can be put back on this machine.
pub(crate) fn available() -> bool {
    page_map().is_some()
}

/// Address space of one linear memory: `size` bytes that can be used, then nothing up to `reserved`.
struct Region {
    base: *mut u8,
    reserved: usize,
    size: AtomicUsize,
}

// SAFETY: `base` is an address that this region alone owns; what is behind it is only touched by
// wasmtime while its instance runs, and by `Snapshot` while it does not.
#[expect(unsafe_code, reason = "raw pointers are not sent without a promise")]
unsafe impl Send for Region {}
// SAFETY: as above.
#[expect(unsafe_code, reason = "raw pointers are not shared without a promise")]
unsafe impl Sync for Region {}

impl Region {
    fn new(size: usize, reserved: usize) -> io::Result<Self> {
        #[expect(unsafe_code, reason = "address space comes from a system call")]
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing.
        let base = unsafe {
            libc::mmap(
                ptr::null_mut(),
                reserved,
                libc::PROT_NONE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let region = Self { base: base.cast(), reserved, size: AtomicUsize::new(0) };
        region.grow(size)?;
        Ok(region)
    }

    fn size(&self) -> usize {
        self.size.load(Ordering::Relaxed)
    }

    fn grow(&self, size: usize) -> io::Result<()> {
        let old = self.size();
        if size > self.reserved || size < old || !size.is_multiple_of(PAGE) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        if size == old {
            return Ok(());
        }
        #[expect(unsafe_code, reason = "a system call")]
        // SAFETY: the range lies in this region's own reservation, as was just checked.
        let failed = unsafe {
            libc::mprotect(
                self.base.add(old).cast(),
                size - old,
                libc::PROT_READ | libc::PROT_WRITE,
            )
        };
        if failed != 0 {
            return Err(io::Error::last_os_error());
        }
        self.size.store(size, Ordering::Relaxed);
        Ok(())
    }

    fn bytes(&self) -> &[u8] {
        #[expect(unsafe_code, reason = "what wasmtime and the kernel hold is behind a pointer")]
        // SAFETY: `size` bytes from `base` can be read, and no instance runs while this is borrowed:
        // its one caller holds the instance.
        unsafe {
            slice::from_raw_parts(self.base, self.size())
        }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        #[expect(unsafe_code, reason = "a system call")]
        // SAFETY: the mapping is this region's own, and the last handle to it is gone.
        let _ = unsafe { libc::munmap(self.base.cast(), self.reserved) };
    }
}

/// A region as wasmtime holds it.
struct Held(Arc<Region>);

#[expect(unsafe_code, reason = "wasmtime trusts memories that are brought to it")]
// SAFETY: the base never moves; sizes are multiples of a page; everything behind them, the guard
// included, is reserved and cannot be accessed.
unsafe impl LinearMemory for Held {
    fn byte_size(&self) -> usize {
        self.0.size()
    }

    fn byte_capacity(&self) -> usize {
        self.0.reserved
    }

    fn grow_to(&mut self, size: usize) -> wasmtime::Result<()> {
        Ok(self.0.grow(size)?)
    }

    fn as_ptr(&self) -> *mut u8 {
        self.0.base
    }
}

/// Makes the memories of instances, and notes them for [`made_by`].
pub(crate) struct Memories;

#[expect(unsafe_code, reason = "wasmtime trusts memories that are brought to it")]
// SAFETY: memories are zero at first and reserve the guard behind them.
unsafe impl MemoryCreator for Memories {
    fn new_memory(
        &self,
        _: MemoryType,
        minimum: usize,
        maximum: Option<usize>,
        reserved: Option<usize>,
        guard: usize,
    ) -> Result<Box<dyn LinearMemory>, String> {
        let room = reserved.or(maximum).unwrap_or(minimum).max(minimum);
        let reserved = (room + guard).next_multiple_of(PAGE);
        let region = Arc::new(Region::new(minimum, reserved).map_err(|error| error.to_string())?);
        MADE.with_borrow_mut(|made| made.push(Arc::clone(&region)));
        Ok(Box::new(Held(region)))
    }
}

/// What `make` returns, and the memories that it made.
pub(crate) fn made_by<T>(make: impl FnOnce() -> T) -> (T, Regions) {
    MADE.with_borrow_mut(Vec::clear);
    let made = make();
    (made, Regions(MADE.take()))
}

/// The memories of one instance.
pub(crate) struct Regions(Vec<Arc<Region>>);

/// What the memories of every fresh instance hold, in a file without a name.
pub(crate) struct Snapshot {
    file: File,
    /// Where in the file each memory begins, and its size.
    parts: Vec<(usize, usize)>,
    content: Region,
}

impl Snapshot {
    /// Of the memories of an instance that has run nothing yet.
    ///
    /// # Errors
    /// Of the system calls.
    pub(crate) fn of(regions: &Regions) -> io::Result<Self> {
        #[expect(unsafe_code, reason = "system calls")]
        // SAFETY: the name is a constant, and a descriptor that is not negative is a new one.
        let file = unsafe {
            let descriptor = libc::memfd_create(c"snapshot".as_ptr(), libc::MFD_CLOEXEC);
            if descriptor < 0 {
                return Err(io::Error::last_os_error());
            }
            File::from_raw_fd(descriptor)
        };
        let mut parts = Vec::new();
        let mut end = 0;
        for region in &regions.0 {
            for (page, bytes) in region.bytes().chunks(PAGE).enumerate() {
                // Pages of nothing but zeros stay holes in the file.
                if *bytes != [0; PAGE][..bytes.len()] {
                    file.write_all_at(bytes, (end + page * PAGE) as u64)?;
                }
            }
            parts.push((end, region.size()));
            end += region.size();
        }
        file.set_len(end as u64)?;
        let content = Region::new(0, end.max(PAGE))?;
        let snapshot = Self { file, parts, content };
        snapshot.map(&snapshot.content, 0, end, libc::PROT_READ)?;
        snapshot.content.size.store(end, Ordering::Relaxed);
        Ok(snapshot)
    }

    /// Lays the snapshot under the memories of another instance that has run nothing yet: fresh
    /// instances of one component hold the same.
    ///
    /// # Errors
    /// Of the system calls, or if the memories are other ones.
    pub(crate) fn lay_under(&self, regions: &Regions) -> io::Result<()> {
        let sizes = self.parts.iter().map(|part| part.1);
        if !regions.0.iter().map(|region| region.size()).eq(sizes) {
            return Err(io::Error::other("two fresh instances differ"));
        }
        for (region, &(start, size)) in regions.0.iter().zip(&self.parts) {
            self.map(region, start, size, libc::PROT_READ | libc::PROT_WRITE)?;
        }
        Ok(())
    }

    /// Maps a part of the file over the beginning of `region`.
    fn map(&self, region: &Region, start: usize, size: usize, access: i32) -> io::Result<()> {
        if size == 0 {
            return Ok(());
        }
        assert!(size <= region.reserved, "a part of the snapshot fits its memory");
        #[expect(unsafe_code, reason = "a system call")]
        // SAFETY: it replaces pages of this region's own reservation, with the same content.
        let mapped = unsafe {
            libc::mmap(
                region.base.cast(),
                size,
                access,
                libc::MAP_PRIVATE | libc::MAP_FIXED,
                self.file.as_raw_fd(),
                start as i64,
            )
        };
        if mapped == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Puts the memories of an instance that is not running back; false if they have grown, or more
    /// was written than is worth it.
    ///
    /// # Errors
    /// If the page map cannot be read.
    pub(crate) fn put_back(&self, regions: &Regions) -> io::Result<bool> {
        let map = page_map().ok_or(io::ErrorKind::Unsupported)?;
        let mut entries = Vec::new();
        let mut written = 0;
        for (region, &(start, size)) in regions.0.iter().zip(&self.parts) {
            if region.size() != size {
                return Ok(false);
            }
            entries.resize(size / PAGE * 8, 0_u8);
            map.read_exact_at(&mut entries, (region.base.addr() / PAGE * 8) as u64)?;
            for (page, entry) in entries.as_chunks::<8>().0.iter().enumerate() {
                let entry = u64::from_ne_bytes(*entry);
                if entry & (PRESENT | SWAPPED) == 0 || entry & OF_FILE != 0 {
                    continue;
                }
                written += PAGE;
                let content = &self.content.bytes()[start + page * PAGE..][..PAGE];
                #[expect(unsafe_code, reason = "what wasmtime holds is behind a pointer")]
                // SAFETY: the page lies within the region, which is another mapping than the
                // snapshot's, and its instance is not running.
                unsafe {
                    ptr::copy_nonoverlapping(content.as_ptr(), region.base.add(page * PAGE), PAGE);
                }
            }
        }
        Ok(written <= MOST_WRITTEN)
    }
}
