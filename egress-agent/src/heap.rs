//! How the process deals with memory that it needs only for a while: a page of a long list, a policy set while it is made.
//!
//! Most of a small agent is its program: the start and long lists run through most of it, what comes after through little. And what stays in
//! the heap should lie close together.
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

/// Gives back what is free between pieces that are used, in whole pages, and the program's own pages. It looks at the whole heap, so call
/// it when much was freed, or when a start or a long list is over.
///
/// Uprobes and breakpoints that somebody has set in the running program are gone after it: they live in copies of its pages.
///
/// What the program needs next it finds in the page cache: a fault of less than a microsecond for each 64 KiB.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes a number and touches only what is free, under the allocator's own locks.
    unsafe {
        libc::malloc_trim(0);
    }
    for (start, length) in unwritten().into_iter().flatten() {
        // SAFETY: these are whole pages of a segment that the program runs from or reads constants from. It is mapped from the file without the
        // right to write, and nothing has written to it: there are no relocations in it. So each page is read again as it was when it is next
        // touched, by this thread or another. If the kernel refuses, the pages stay.
        unsafe {
            libc::madvise(start as *mut libc::c_void, length, libc::MADV_DONTNEED);
        }
    }
}

/// How many segments of the program are looked at; linkers make two or three.
const SEGMENTS: usize = 4;

/// Returns where the whole pages of those segments of the program begin that it never writes to (its code, its constants), and how many bytes
/// each has.
fn unwritten() -> [Option<(usize, usize)>; SEGMENTS] {
    /// What one object's headers say. It stops at the first object, which is the program.
    unsafe extern "C" fn first(
        object: *mut libc::dl_phdr_info,
        _size: libc::size_t,
        found: *mut libc::c_void,
    ) -> libc::c_int {
        // SAFETY: the loader gives a valid object with as many headers as it says, for the time of the call.
        let (base, headers) = unsafe {
            let object = &*object;
            (object.dlpi_addr, std::slice::from_raw_parts(object.dlpi_phdr, usize::from(object.dlpi_phnum)))
        };
        // SAFETY: it is the place that `unwritten` has passed, which outlives the call and is used by nobody else.
        let found = unsafe { &mut *found.cast::<[Option<(u64, u64)>; SEGMENTS]>() };
        let fits = headers
            .iter()
            .filter(|header| header.p_type == libc::PT_LOAD && header.p_flags & libc::PF_W == 0);
        for (place, header) in found.iter_mut().zip(fits) {
            *place = Some((base + header.p_vaddr, header.p_filesz));
        }
        1
    }
    let mut found: [Option<(u64, u64)>; SEGMENTS] = [None; SEGMENTS];
    // SAFETY: the function has the type that is asked for, and does not unwind.
    unsafe {
        libc::dl_iterate_phdr(Some(first), (&raw mut found).cast());
    }
    let page = rustix::param::page_size() as u64;
    found.map(|segment| {
        let (start, length) = segment?;
        let end = (start + length) / page * page;
        let start = start.next_multiple_of(page);
        Some((usize::try_from(start).ok()?, usize::try_from(end.checked_sub(start)?).ok()?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Something that may be written to.
    static WRITTEN: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(7);

    #[test]
    fn what_is_not_written_is_code_and_constants() {
        let segments: Vec<(usize, usize)> = unwritten().into_iter().flatten().collect();
        let here = give_back as fn() as usize;
        let constant = "a text that is nowhere else: heap".as_ptr() as usize;
        for place in [here, constant] {
            let holds = |(start, length): &(usize, usize)| (*start..start + length).contains(&place);
            assert!(segments.iter().any(holds), "{place:x} is in none of {segments:x?}");
        }
        let mut changes = Box::new(0);
        *changes += 1;
        let page = rustix::param::page_size();
        for (start, length) in segments {
            assert_eq!((start % page, length % page), (0, 0));
            assert!(!(start..start + length).contains(&(&raw const *changes as usize)));
            assert!(!(start..start + length).contains(&(&raw const WRITTEN as usize)));
        }
    }

    #[test]
    fn pages_are_given_back_and_come_back() {
        let here = give_back as fn() as usize;
        let mut segments = unwritten().into_iter().flatten();
        let (start, length) = segments
            .find(|(start, length)| (*start..start + length).contains(&here))
            .expect("a program has code");
        let page = rustix::param::page_size();
        let resident = || {
            let text = std::fs::read_to_string("/proc/self/smaps").expect("there is a list of mappings");
            let holds = |line: &str| {
                let range = line.split_once(' ').and_then(|(range, _)| range.split_once('-'));
                let number = |text| usize::from_str_radix(text, 16);
                range.is_some_and(|(from, to)| {
                    matches!((number(from), number(to)), (Ok(from), Ok(to)) if (from..to).contains(&start))
                })
            };
            let mut lines = text.lines().skip_while(|line| !holds(line));
            let line = lines.find(|line| line.starts_with("Rss:")).expect("the mapping of the code is in it");
            line.split_whitespace()
                .nth(1)
                .and_then(|text| text.parse::<usize>().ok())
                .expect("a number of kB")
                * 1024
        };
        // Touches all of it.
        let sum = |from: usize| -> u64 {
            // SAFETY: it is a byte of a readable mapping of this program.
            (0..length / page)
                .map(|number| u64::from(unsafe { *((from + number * page) as *const u8) }))
                .sum()
        };
        let before = sum(start);
        let most = resident();
        give_back();
        let least = resident();
        assert!(least < most / 2, "{least} of {most} bytes are left");
        assert_eq!(sum(start), before, "what is there is what was there");
    }
}
