//! What the kernel programs and the agent both know: the layout of every map, the meaning of every number in them,
//! and the one function that turns a looked-up rule into a verdict.
//!
//! Everything here is `no_std`, free of allocation, and laid out with `repr(C)` and explicit padding, because the same
//! bytes are written by one side and read by the other. `docs/map-layout.md` draws the maps; the tests at the end of each
//! module pin sizes and offsets.
#![no_std]

pub mod config;
pub mod decide;
pub mod endpoint;
pub mod event;
pub mod maps;
pub mod policy;
pub mod socket;
pub mod verdict;

/// The version of all layouts together. Pins live in a folder named after it, so an agent never reads maps whose bytes it
/// would misunderstand. Raise it with any change to a struct, a key or the meaning of a number in this crate.
pub const LAYOUT_VERSION: u32 = 3;

/// Maps an IPv4 address into the 128-bit space all address keys share (`::ffff:a.b.c.d`).
///
/// `octets` are in network order, and so is each word of the result when it is read as bytes.
#[must_use]
#[inline(always)]
pub const fn v4_mapped(octets: [u8; 4]) -> [u32; 4] {
    [0, 0, V4_MAPPED_WORD, u32::from_ne_bytes(octets)]
}

/// The third word of a v4-mapped address, as it stands in memory (`00 00 ff ff`).
pub const V4_MAPPED_WORD: u32 = u32::from_ne_bytes([0, 0, 0xff, 0xff]);

/// Splits sixteen address octets (network order) into the four words the keys use, keeping the bytes in place.
#[must_use]
#[inline(always)]
pub const fn words(octets: [u8; 16]) -> [u32; 4] {
    let o = octets;
    [
        u32::from_ne_bytes([o[0], o[1], o[2], o[3]]),
        u32::from_ne_bytes([o[4], o[5], o[6], o[7]]),
        u32::from_ne_bytes([o[8], o[9], o[10], o[11]]),
        u32::from_ne_bytes([o[12], o[13], o[14], o[15]]),
    ]
}

/// The inverse of [`words`]: the sixteen octets of an address key, network order.
#[must_use]
pub const fn octets(words: [u32; 4]) -> [u8; 16] {
    let (a, b, c, d) =
        (words[0].to_ne_bytes(), words[1].to_ne_bytes(), words[2].to_ne_bytes(), words[3].to_ne_bytes());
    [a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3], c[0], c[1], c[2], c[3], d[0], d[1], d[2], d[3]]
}
