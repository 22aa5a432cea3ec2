//! Ranges in pieces that nodes fetch.
//!
//! A publication is a head, small JSON, and chunks of bytes, each named by its SHA-256. There is a chunk for each region (some for a
//! region that is too large for one), so that a prefix that comes or goes changes one chunk, and a node fetches only those of the regions
//! that its policies name: [`Head::wanted`] says which. Chunks hold their own names and depend on nothing else; the same rows make the
//! same chunks everywhere.
//!
//! A chunk is what it says only if its hash is the one in the head. Still, [`decode`] believes neither: it takes arbitrary bytes, and
//! gives an error or a table whose rows a provider could have.
//!
//! A chunk's bytes, numbers as LEB128:
//!
//! 1. `EGR1`, then the names: their count, and each as length and bytes; sorted.
//! 2. The count of groups. Each is a service, a region, a border group, and 0 or one more than what the region is a part of, all numbers
//!    of names; then the counts of IPv4 and IPv6 prefixes.
//! 3. A prefix is its length (one byte) and how far its network is behind the one before it in the group, in networks of its own size.
//! 4. The count of domains. Each is the number of its service, and length and bytes.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use crate::policy::{
    document::shown,
    model::Unresolved,
    ranges::{
        Builder, GLOBAL, Revision, Row, Table,
        table::{BuildError, MAX_NAME, MAX_NAMES, MAX_ROWS},
    },
};

/// The version of the format that is written, and the only one that is read.
pub const FORMAT: u32 = 1;
/// Bytes of a chunk. In base64 it fits into an object of the API server.
pub const MAX_CHUNK: usize = 512 * 1024;
/// Chunks of a publication.
pub const MAX_CHUNKS: usize = 1024;
/// Bytes of all chunks together.
pub const MAX_TOTAL: usize = 32 << 20;
/// Bytes of a head.
pub const MAX_HEAD: usize = 512 * 1024;

const MAGIC: &[u8; 4] = b"EGR1";

/// What a publication consists of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Head {
    /// [`FORMAT`].
    pub format: u32,
    /// The provider's name.
    pub provider: String,
    /// Which publication of the provider's it is, see [`Revision`].
    pub revision: u64,
    /// Whether the revision is a number made from the rows, because the provider gives none.
    pub from_content: bool,
    /// When it was made, in seconds since the epoch.
    pub created: u64,
    /// Whether rows of region GLOBAL repeat those of the regions.
    pub global_is_sum: bool,
    /// The services, in order.
    pub services: Vec<String>,
    /// In order of their regions.
    pub chunks: Vec<Chunk>,
}

/// Names a piece and says what is in it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Chunk {
    /// Every name that a region in it can be called by.
    pub regions: Vec<String>,
    /// The services in it, as numbers of [`Head::services`]; ascending.
    pub services: Vec<u32>,
    /// SHA-256 of its bytes.
    pub sha256: Sha256,
    /// How many bytes it has.
    pub bytes: u32,
    /// How many rows and domains are in it.
    pub rows: u32,
}

/// The SHA-256 of a chunk. Written as 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Sha256(pub [u8; 32]);

impl Sha256 {
    /// Returns the hash of `bytes`.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        let digest = ring::digest::digest(&ring::digest::SHA256, bytes);
        let mut hash = [0; 32];
        hash.copy_from_slice(digest.as_ref());
        Self(hash)
    }
}

impl fmt::Display for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Sha256 {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Sha256 {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let wrong = || serde::de::Error::custom(format!("{} is no SHA-256 in lower case", shown(&text)));
        let digits = text.as_bytes();
        if digits.len() != 64 {
            return Err(wrong());
        }
        let digit = |byte: u8| match byte {
            b'0'..=b'9' => Ok(byte - b'0'),
            b'a'..=b'f' => Ok(byte - b'a' + 10),
            _ => Err(wrong()),
        };
        let mut hash = [0; 32];
        for (byte, pair) in hash.iter_mut().zip(digits.chunks_exact(2)) {
            *byte = digit(pair[0])? << 4 | digit(pair[1])?;
        }
        Ok(Self(hash))
    }
}

/// A head and the bytes of its chunks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Publication {
    /// What it consists of.
    pub head: Head,
    /// By their hashes.
    pub chunks: BTreeMap<Sha256, Vec<u8>>,
}

/// Why a publication cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// The head is no head.
    #[error("the head cannot be read: {0}")]
    Head(String),
    /// It is of another version.
    #[error("the format is {0}, and this program reads {FORMAT}")]
    Format(u32),
    /// A chunk's bytes are not those that the head names.
    #[error("chunk {0} has other bytes than its name says")]
    Hash(Sha256),
    /// A chunk is no chunk.
    #[error("chunk {chunk}, byte {at}: {what}")]
    Chunk {
        /// Its name.
        chunk: Sha256,
        /// Where, from 0.
        at: usize,
        /// What is wrong.
        what: &'static str,
    },
    /// A row is one that no provider has.
    #[error("chunk {chunk}: {error}")]
    Row {
        /// Its name.
        chunk: Sha256,
        /// What is wrong.
        error: BuildError,
    },
}

/// Why a table cannot be published.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TooLarge {
    /// There are too many chunks up to this region.
    #[error("with region {} there are more than {MAX_CHUNKS} chunks of {MAX_CHUNK} bytes", shown(.0))]
    Region(String),
    /// The head is larger than one may be, or all chunks together are.
    #[error("the head has more than {MAX_HEAD} bytes, or the chunks more than {MAX_TOTAL}")]
    Whole,
}

/// Returns the publication of a table.
///
/// # Errors
///
/// When it is too large for one, which no provider's data is by far.
pub fn encode(provider: &str, table: &Table, created: u64) -> Result<Publication, TooLarge> {
    let services: Vec<String> = table.services().map(str::to_owned).collect();
    let mut regions: BTreeMap<&str, Piece<'_>> = BTreeMap::new();
    for row in table.rows() {
        regions.entry(row.region).or_default().rows.push(row);
    }
    if table.domains().len() > 0 {
        // Under the name that the rows use, so that there are not two.
        let global = table.regions().find(|name| name.eq_ignore_ascii_case(GLOBAL)).unwrap_or(GLOBAL);
        regions.entry(global).or_default().domains.extend(table.domains());
    }
    let mut publication = Publication {
        head: Head {
            format: FORMAT,
            provider: provider.to_owned(),
            revision: table.revision().number(),
            from_content: matches!(table.revision(), Revision::Content(_)),
            created,
            global_is_sum: table.global_is_sum(),
            services,
            chunks: Vec::new(),
        },
        chunks: BTreeMap::new(),
    };
    for (region, piece) in regions {
        let too_large = || TooLarge::Region(region.to_owned());
        for (piece, bytes) in piece.encoded(0).ok_or_else(too_large)? {
            let head = &mut publication.head;
            if head.chunks.len() == MAX_CHUNKS {
                return Err(too_large());
            }
            let count = |n: usize| u32::try_from(n).map_err(|_| too_large());
            let number = |service: &str| head.services.iter().position(|name| name == service);
            let names: BTreeSet<&str> = piece.services().collect();
            let services = names.into_iter().filter_map(number).map(count).collect::<Result<_, _>>()?;
            let sha256 = Sha256::of(&bytes);
            head.chunks.push(Chunk {
                regions: piece.regions(region).map(str::to_owned).collect(),
                services,
                sha256,
                bytes: count(bytes.len())?,
                rows: count(piece.rows.len() + piece.domains.len())?,
            });
            publication.chunks.insert(sha256, bytes);
        }
    }
    for chunk in &mut publication.head.chunks {
        chunk.services.sort_unstable();
    }
    let total: usize = publication.chunks.values().map(Vec::len).sum();
    match total > MAX_TOTAL || publication.head.text().len() > MAX_HEAD {
        true => Err(TooLarge::Whole),
        false => Ok(publication),
    }
}

/// What goes into a chunk.
#[derive(Clone, Debug, Default)]
struct Piece<'t> {
    /// In the order of a table.
    rows: Vec<Row<'t>>,
    domains: Vec<(&'t str, &'t str)>,
}

impl<'t> Piece<'t> {
    fn services(&self) -> impl Iterator<Item = &'t str> {
        self.rows.iter().map(|row| row.service).chain(self.domains.iter().map(|(service, _)| *service))
    }

    /// Returns every name that a region in it can be called by; `region` is the one of all its rows.
    fn regions(&self, region: &'t str) -> impl Iterator<Item = &'t str> {
        let names = self.rows.iter().flat_map(|row| [row.network_border_group, row.wider]);
        let names: BTreeSet<&str> =
            names.filter(|name| !name.is_empty()).chain(std::iter::once(region)).collect();
        names.into_iter()
    }

    /// Returns it in as few chunks as can be. It is cut by a hash of what is in a row, so that a row that comes or goes leaves the
    /// other halves as they are.
    fn encoded(self, depth: u32) -> Option<Vec<(Self, Vec<u8>)>> {
        let bytes = self.bytes()?;
        if bytes.len() <= MAX_CHUNK {
            return Some(vec![(self, bytes)]);
        }
        if depth == 10 {
            return None;
        }
        let (mut halves, bit) = ([Self::default(), Self::default()], 1 << depth);
        for row in self.rows {
            halves[usize::from(hash(row.service, &row.cidr) & bit != 0)].rows.push(row);
        }
        for (service, domain) in self.domains {
            halves[usize::from(hash(service, &domain) & bit != 0)].domains.push((service, domain));
        }
        let mut all = Vec::new();
        for half in halves {
            all.extend(half.encoded(depth + 1)?);
        }
        Some(all)
    }

    fn bytes(&self) -> Option<Vec<u8>> {
        let areas = |row: &Row<'t>| [row.service, row.region, row.network_border_group, row.wider];
        let names: BTreeSet<&str> =
            self.rows.iter().flat_map(areas).chain(self.services()).filter(|name| !name.is_empty()).collect();
        let names: Vec<&str> = names.into_iter().collect();
        let number = |name: &str| names.binary_search(&name).ok();
        let mut bytes = MAGIC.to_vec();
        put(&mut bytes, names.len() as u128);
        for name in &names {
            put_text(&mut bytes, name);
        }
        let groups = || self.rows.chunk_by(|a, b| areas(a) == areas(b));
        put(&mut bytes, groups().count() as u128);
        for group in groups() {
            let first = group.first()?;
            for name in [first.service, first.region, first.network_border_group] {
                put(&mut bytes, number(name)? as u128);
            }
            put(&mut bytes, number(first.wider).map_or(0, |number| number as u128 + 1));
            let v4 = group.iter().take_while(|row| matches!(row.cidr, IpNet::V4(_))).count();
            put(&mut bytes, v4 as u128);
            put(&mut bytes, (group.len() - v4) as u128);
            let mut last = 0_u128;
            for (at, row) in group.iter().enumerate() {
                if at == v4 {
                    last = 0;
                }
                let (bits, spare) = match row.cidr {
                    IpNet::V4(net) => (u128::from(u32::from(net.addr())), 32 - net.prefix_len()),
                    IpNet::V6(net) => (u128::from(net.addr()), 128 - net.prefix_len()),
                };
                bytes.push(row.cidr.prefix_len());
                put(&mut bytes, shr(bits, spare) - shr(last, spare));
                last = bits;
            }
        }
        put(&mut bytes, self.domains.len() as u128);
        for (service, domain) in &self.domains {
            put(&mut bytes, number(service)? as u128);
            put_text(&mut bytes, domain);
        }
        Some(bytes)
    }
}

/// Shifts by up to 128 bits.
fn shr(bits: u128, by: u8) -> u128 {
    bits.checked_shr(by.into()).unwrap_or(0)
}

fn hash(service: &str, rest: &impl fmt::Display) -> u32 {
    let text = format!("{service} {rest}");
    let hash =
        text.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    // The low bits of FNV say little of texts that differ in their last letters.
    hash ^ hash >> 15
}

fn put(bytes: &mut Vec<u8>, mut number: u128) {
    loop {
        let low = (number & 0x7f) as u8;
        number >>= 7;
        if number == 0 {
            bytes.push(low);
            return;
        }
        bytes.push(low | 0x80);
    }
}

fn put_text(bytes: &mut Vec<u8>, text: &str) {
    put(bytes, text.len() as u128);
    bytes.extend(text.as_bytes());
}

impl Head {
    /// Reads a head.
    ///
    /// # Errors
    ///
    /// When it is none, or one that this program cannot use.
    pub fn parse(bytes: &[u8]) -> Result<Self, Unreadable> {
        #[derive(Deserialize)]
        struct Version {
            format: u32,
        }
        let wrong = |what: &dyn fmt::Display| Unreadable::Head(what.to_string());
        if bytes.len() > MAX_HEAD {
            return Err(wrong(&format_args!("it has more than {MAX_HEAD} bytes")));
        }
        let Version { format } = serde_json::from_slice(bytes).map_err(|error| wrong(&error))?;
        if format != FORMAT {
            return Err(Unreadable::Format(format));
        }
        let head: Self = serde_json::from_slice(bytes).map_err(|error| wrong(&error))?;
        if head.chunks.len() > MAX_CHUNKS {
            return Err(wrong(&format_args!("it has more than {MAX_CHUNKS} chunks")));
        }
        if head.chunks.iter().any(|chunk| chunk.bytes as usize > MAX_CHUNK) {
            return Err(wrong(&format_args!("a chunk has more than {MAX_CHUNK} bytes")));
        }
        if head.chunks.iter().map(|chunk| chunk.bytes as usize).sum::<usize>() > MAX_TOTAL {
            return Err(wrong(&format_args!("its chunks have more than {MAX_TOTAL} bytes together")));
        }
        let services = head.services.len();
        if head.chunks.iter().flat_map(|chunk| &chunk.services).any(|number| *number as usize >= services) {
            return Err(wrong(&"a chunk has a service that is not listed"));
        }
        if head.services.len() > MAX_NAMES {
            return Err(wrong(&format_args!("it has more than {MAX_NAMES} services")));
        }
        Ok(head)
    }

    /// Returns the head as text. The same head is the same text.
    ///
    /// # Panics
    ///
    /// Never: it consists of numbers and strings.
    #[must_use]
    pub fn text(&self) -> String {
        serde_json::to_string(self).expect("numbers and strings can be written")
    }

    /// Returns the revision.
    #[must_use]
    pub fn revision(&self) -> Revision {
        if self.from_content { Revision::Content(self.revision) } else { Revision::Published(self.revision) }
    }

    /// Returns the chunks that some destination of `wanted` needs. With those a table answers these destinations as the whole would; only
    /// rows of region GLOBAL that `regions` leaves out are not counted.
    #[must_use]
    pub fn wanted<'h>(&'h self, wanted: &[&Unresolved]) -> Vec<&'h Chunk> {
        let asks: Vec<(&[String], &[String])> = wanted
            .iter()
            .filter_map(|what| match what {
                Unresolved::AwsService { service, regions } if self.provider.eq_ignore_ascii_case("aws") => {
                    Some((std::slice::from_ref(service), regions.as_slice()))
                }
                Unresolved::Cloud { provider, services, regions }
                    if self.provider.eq_ignore_ascii_case(provider) =>
                {
                    Some((services.as_slice(), regions.as_slice()))
                }
                Unresolved::AwsService { .. } | Unresolved::Cloud { .. } | Unresolved::Domains(_) => None,
            })
            .collect();
        let has = |chunk: &Chunk, services: &[String], regions: &[String]| {
            // A name with a region in it, such as Sql.EastUS, is any service of that name's beginning.
            let service = |name: &String| {
                chunk.services.iter().filter_map(|number| self.services.get(*number as usize)).any(
                    |service| {
                        let same = |name: &str| service.eq_ignore_ascii_case(name);
                        same(name) || name.rsplit_once('.').is_some_and(|(service, _)| same(service))
                    },
                )
            };
            let region = |name: &String| chunk.regions.iter().any(|region| region.eq_ignore_ascii_case(name));
            (services.is_empty() || services.iter().any(service))
                && (regions.is_empty() || regions.iter().any(region))
        };
        let needed = |chunk: &&Chunk| asks.iter().any(|(services, regions)| has(chunk, services, regions));
        self.chunks.iter().filter(needed).collect()
    }
}

/// Returns the table of some chunks of a head, or of all. It has the revision of the whole and all its names.
///
/// # Errors
///
/// When a chunk is not what its name says, or no chunk at all.
pub fn decode(head: &Head, chunks: &[(&Chunk, &[u8])]) -> Result<Table, Unreadable> {
    let mut builder = Builder::new();
    if head.global_is_sum {
        builder.global_is_sum();
    }
    // Also of what is in other chunks: a region without rows of a service is not an unknown one.
    let named = |error: BuildError| Unreadable::Head(error.to_string());
    for service in &head.services {
        builder.name_service(service).map_err(named)?;
    }
    for region in head.chunks.iter().flat_map(|chunk| &chunk.regions) {
        builder.name_region(region).map_err(named)?;
    }
    for (chunk, bytes) in chunks {
        if bytes.len() != chunk.bytes as usize || Sha256::of(bytes) != chunk.sha256 {
            return Err(Unreadable::Hash(chunk.sha256));
        }
        read(bytes, chunk.sha256, &mut builder)?;
    }
    Ok(builder.finish(Some(head.revision)).with_revision(head.revision()))
}

/// Adds the rows of a chunk. Whether its bytes have that name is the caller's business.
///
/// # Errors
///
/// When it is no chunk.
pub fn read(bytes: &[u8], name: Sha256, builder: &mut Builder) -> Result<(), Unreadable> {
    let mut reader = Reader { bytes, at: 0, name };
    if bytes.len() > MAX_CHUNK {
        return Err(reader.wrong("it is larger than a chunk may be"));
    }
    if reader.take(MAGIC.len())? != MAGIC {
        return Err(reader.wrong("it does not begin as a chunk does"));
    }
    let names: Vec<&str> =
        (0..reader.count(MAX_NAMES)?).map(|_| reader.text(MAX_NAME)).collect::<Result<_, _>>()?;
    let row = |error: BuildError| Unreadable::Row { chunk: name, error };
    for _ in 0..reader.count(MAX_ROWS)? {
        let mut name = || reader.name(&names);
        let (service, region, network_border_group) = (name()?, name()?, name()?);
        let wider = match reader.count(names.len())? {
            0 => "",
            number => names[number - 1],
        };
        let (v4, v6) = (reader.count(MAX_ROWS)?, reader.count(MAX_ROWS)?);
        let mut last = 0;
        for _ in 0..v4 {
            let (bits, length) = reader.net(last, 32)?;
            last = bits;
            let bits = u32::try_from(bits).map_err(|_| reader.wrong("an address beyond the last"))?;
            let cidr = IpNet::V4(Ipv4Net::new_assert(bits.into(), length));
            builder.push(Row { service, region, network_border_group, wider, cidr }).map_err(row)?;
        }
        last = 0;
        for _ in 0..v6 {
            let (bits, length) = reader.net(last, 128)?;
            last = bits;
            let cidr = IpNet::V6(Ipv6Net::new_assert(bits.into(), length));
            builder.push(Row { service, region, network_border_group, wider, cidr }).map_err(row)?;
        }
    }
    for _ in 0..reader.count(MAX_ROWS)? {
        let service = reader.name(&names)?;
        let domain = reader.text(253)?;
        builder.push_domain(service, domain).map_err(row)?;
    }
    if reader.at == bytes.len() { Ok(()) } else { Err(reader.wrong("there is something behind its end")) }
}

struct Reader<'b> {
    bytes: &'b [u8],
    at: usize,
    name: Sha256,
}

impl<'b> Reader<'b> {
    fn wrong(&self, what: &'static str) -> Unreadable {
        Unreadable::Chunk { chunk: self.name, at: self.at, what }
    }

    fn take(&mut self, count: usize) -> Result<&'b [u8], Unreadable> {
        let end = self.at.checked_add(count).filter(|end| *end <= self.bytes.len());
        let taken = &self.bytes[self.at..end.ok_or_else(|| self.wrong("it ends too early"))?];
        self.at += count;
        Ok(taken)
    }

    fn number(&mut self) -> Result<u128, Unreadable> {
        let mut number = 0_u128;
        for shift in (0..).step_by(7) {
            let byte = self.take(1)?[0];
            let low = u128::from(byte & 0x7f);
            // The nineteenth byte has room for two bits.
            if shift > 126 || shift == 126 && low > 3 {
                break;
            }
            number |= low << shift;
            if byte & 0x80 == 0 {
                return if byte == 0 && shift > 0 {
                    Err(self.wrong("a number that could be shorter"))
                } else {
                    Ok(number)
                };
            }
        }
        Err(self.wrong("a number that is too large"))
    }

    /// Reads how many of something there are. Each takes a byte at least, so that nothing is reserved that does not come.
    fn count(&mut self, most: usize) -> Result<usize, Unreadable> {
        let count = self.number()?;
        usize::try_from(count)
            .ok()
            .filter(|count| *count <= most)
            .ok_or_else(|| self.wrong("a count that is too large"))
    }

    fn text(&mut self, most: usize) -> Result<&'b str, Unreadable> {
        let length = self.count(most)?;
        let bytes = self.take(length)?;
        std::str::from_utf8(bytes).map_err(|_| self.wrong("a name that is not UTF-8"))
    }

    fn name<'n>(&mut self, names: &[&'n str]) -> Result<&'n str, Unreadable> {
        let number = self.count(names.len())?;
        names.get(number).copied().ok_or_else(|| self.wrong("a name that is not there"))
    }

    /// Reads a network of a family whose addresses have `width` bits.
    fn net(&mut self, last: u128, width: u8) -> Result<(u128, u8), Unreadable> {
        let length = self.take(1)?[0];
        let spare = width.checked_sub(length).ok_or_else(|| self.wrong("a prefix that is too long"))?;
        let behind = self.number()?;
        let network = shr(last, spare).checked_add(behind);
        let network = network.filter(|network| shr(*network, length) == 0);
        let network = network.ok_or_else(|| self.wrong("an address beyond the last"))?;
        Ok((network.checked_shl(spare.into()).unwrap_or(0), length))
    }
}

#[cfg(test)]
mod tests;
