//! How the process deals with memory that it needs only for a while: a page of a long list, a policy set while it is made.
//!
//! It has one thread that works, and a few megabytes that stay. What glibc does by itself is meant for others: it learns from the
//! first large piece that is freed to keep such pieces in the heap, where small ones that stay are then put in between.

/// Has large pieces given back as soon as they are freed. To be called before there is another thread.
pub fn economize() {
    #[cfg(target_env = "gnu")]
    {
        /// From this size on, in bytes, a piece stands by itself and not in the heap; glibc's own start value, kept for good.
        const ALONE: libc::c_int = 128 * 1024;
        for (what, value) in
            [(libc::M_MMAP_THRESHOLD, ALONE), (libc::M_TRIM_THRESHOLD, ALONE), (libc::M_ARENA_MAX, 1)]
        {
            // SAFETY: it sets a number of the allocator, which no other thread uses yet.
            let taken = unsafe { libc::mallopt(what, value) };
            // One that is not taken leaves what glibc does by itself.
            debug_assert_eq!(taken, 1, "mallopt({what}, {value})");
        }
    }
}

/// Gives back what is free between pieces that are used, in whole pages. It looks at the whole heap, so call it when much was freed.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes a number and touches only what is free, under the allocator's own locks.
    unsafe {
        libc::malloc_trim(0);
    }
}
