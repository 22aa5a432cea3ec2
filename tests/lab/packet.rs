//! Packets made by hand.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// What goes into an IPv4 header besides addresses.
#[derive(Clone, Debug)]
pub struct V4 {
    /// The protocol number.
    pub protocol: u8,
    /// Flags and fragment offset.
    pub fragment: u16,
    /// Options, a multiple of four bytes.
    pub options: Vec<u8>,
}

impl V4 {
    /// A header without options of a whole packet.
    #[must_use]
    pub fn plain(protocol: u8) -> Self {
        Self { protocol, fragment: 0, options: Vec::new() }
    }

    /// Builds the packet. The kernel fills in the header's checksum.
    ///
    /// # Panics
    ///
    /// When it would be too long.
    #[must_use]
    pub fn packet(&self, source: Ipv4Addr, destination: Ipv4Addr, payload: &[u8]) -> Vec<u8> {
        let header = 20 + self.options.len();
        let words = u8::try_from(header / 4).expect("an IPv4 header has at most 60 bytes");
        let length = u16::try_from(header + payload.len()).expect("the packet is small");
        let mut packet = vec![0x40 | words, 0];
        packet.extend(length.to_be_bytes());
        packet.extend([0x12, 0x34]);
        packet.extend(self.fragment.to_be_bytes());
        packet.extend([64, self.protocol, 0, 0]);
        packet.extend(source.octets());
        packet.extend(destination.octets());
        packet.extend(&self.options);
        packet.extend(payload);
        packet
    }
}

/// Builds an IPv6 packet whose first header after the fixed one is `next`.
///
/// # Panics
///
/// When it would be too long.
#[must_use]
pub fn v6(next: u8, source: Ipv6Addr, destination: Ipv6Addr, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len()).expect("the packet is small");
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend(length.to_be_bytes());
    packet.extend([next, 64]);
    packet.extend(source.octets());
    packet.extend(destination.octets());
    packet.extend(payload);
    packet
}

/// Builds a UDP datagram with eight bytes in it and the right checksum.
#[must_use]
pub fn udp(source: SocketAddr, destination: SocketAddr) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(source.port().to_be_bytes());
    bytes.extend(destination.port().to_be_bytes());
    bytes.extend([0, 16, 0, 0]);
    bytes.extend(b"datagram");
    let mut pseudo = Vec::new();
    match (source.ip(), destination.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            pseudo.extend(from.octets());
            pseudo.extend(to.octets());
        }
        (from, to) => {
            for address in [from, to] {
                match address {
                    IpAddr::V4(v4) => pseudo.extend(v4.to_ipv6_mapped().octets()),
                    IpAddr::V6(v6) => pseudo.extend(v6.octets()),
                }
            }
        }
    }
    pseudo.extend([0, 17, 0, 16]);
    let sum = checksum(&[pseudo.as_slice(), bytes.as_slice()].concat());
    bytes[6..8].copy_from_slice(&sum.to_be_bytes());
    bytes
}

/// Builds the first segment of a TCP connection, without a checksum.
#[must_use]
pub fn syn(source_port: u16, destination_port: u16) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(source_port.to_be_bytes());
    bytes.extend(destination_port.to_be_bytes());
    bytes.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0xff, 0xff, 0, 0, 0, 0]);
    bytes
}

/// Builds an ICMP echo request.
#[must_use]
pub fn echo_request(ipv6: bool) -> Vec<u8> {
    let kind = if ipv6 { 128 } else { 8 };
    let mut bytes = vec![kind, 0, 0, 0, 0x2a, 0x2a, 0, 1];
    bytes.extend(b"egress lab");
    if !ipv6 {
        let sum = checksum(&bytes);
        bytes[2..4].copy_from_slice(&sum.to_be_bytes());
    }
    bytes
}

/// The Internet checksum of an even number of bytes.
fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    let folded = u16::try_from(sum).expect("the carries were folded in");
    match !folded {
        // For UDP zero means that there is no checksum.
        0 => 0xffff,
        sum => sum,
    }
}
