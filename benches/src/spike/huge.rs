//! Vectors in huge pages, as the engine keeps its indexes.
#![allow(unsafe_code)]

use rustix::mm::{Advice, madvise};

/// Returns `len` copies of `value`, in memory that was advised as huge before its first touch.
pub fn filled<T: Clone>(value: T, len: usize) -> Vec<T> {
    let mut items: Vec<T> = Vec::with_capacity(len);
    let start = (items.as_mut_ptr() as usize).next_multiple_of(PAGE_LEN);
    let end = (items.as_ptr() as usize + len * size_of::<T>()) & !(PAGE_LEN - 1);
    if start < end {
        let offset = start - items.as_ptr() as usize;
        // SAFETY: the advised pages lie wholly inside the allocation, and the advice changes
        // how they are backed, not what they hold. A refusal only costs speed.
        let _ = unsafe {
            let page = items.as_mut_ptr().byte_add(offset);
            madvise(page.cast(), end - start, Advice::LinuxHugepage)
        };
    }
    items.resize(len, value);
    items
}

const PAGE_LEN: usize = 4096;
