//! Proves from inside a pod what its policies let pass and what they deny, and writes the evidence.
//!
//! A socket tells four things apart: a call refused with `EPERM` (denied here), an answer of any kind, a refusal among them (the packet
//! got out), silence, and no way there. Only the first two prove anything; what stays unproven is told as such.

pub mod evidence;
pub mod probe;

use std::{fmt, net::IpAddr, str::FromStr};

use serde::{Deserialize, Serialize};

/// What is expected of a destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Expect {
    /// It can be reached.
    Allow,
    /// It cannot.
    Deny,
}

impl Expect {
    /// Returns its word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
        }
    }
}

/// How a destination is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// A TCP connection.
    Tcp,
    /// A datagram of one octet.
    Udp,
    /// A question for the root's name servers, over UDP.
    Dns,
    /// The same over TCP.
    DnsTcp,
}

impl Protocol {
    /// Returns what stands before `://`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Dns => "dns",
            Self::DnsTcp => "dns+tcp",
        }
    }
}

/// Where a destination is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Host {
    /// An address.
    Address(IpAddr),
    /// A name, to be asked for first.
    Name(String),
}

/// A destination, written `[tcp|udp|dns|dns+tcp://]HOST[:PORT]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// How it is asked.
    pub protocol: Protocol,
    /// Where it is.
    pub host: Host,
    /// At which port.
    pub port: u16,
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (scheme, port) = (self.protocol.as_str(), self.port);
        match &self.host {
            Host::Address(IpAddr::V6(address)) => write!(f, "{scheme}://[{address}]:{port}"),
            Host::Address(IpAddr::V4(address)) => write!(f, "{scheme}://{address}:{port}"),
            Host::Name(name) => write!(f, "{scheme}://{name}:{port}"),
        }
    }
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (protocol, rest) = match text.split_once("://") {
            None => (Protocol::Tcp, text),
            Some(("tcp", rest)) => (Protocol::Tcp, rest),
            Some(("udp", rest)) => (Protocol::Udp, rest),
            Some(("dns", rest)) => (Protocol::Dns, rest),
            Some(("dns+tcp", rest)) => (Protocol::DnsTcp, rest),
            Some((other, _)) => return Err(format!("no protocol {other:?}; one of tcp, udp, dns, dns+tcp")),
        };
        let usual = match protocol {
            Protocol::Dns | Protocol::DnsTcp => Some(53),
            Protocol::Tcp | Protocol::Udp => None,
        };
        let number = |text: &str| match text.parse() {
            Ok(0) | Err(_) => Err(format!("{text:?} is no port")),
            Ok(port) => Ok(port),
        };
        let port = |text: Option<&str>| match (text, usual) {
            (Some(text), _) => number(text),
            (None, Some(port)) => Ok(port),
            (None, None) => Err("a port is missing; write HOST:PORT".to_owned()),
        };
        if let Some(rest) = rest.strip_prefix('[') {
            let (address, rest) = rest.split_once(']').ok_or("a `]` is missing")?;
            let address = address.parse().map_err(|_| format!("{address:?} is no IPv6 address"))?;
            let rest = match rest {
                "" => None,
                rest => Some(rest.strip_prefix(':').ok_or("write [ADDRESS]:PORT")?),
            };
            return Ok(Self { protocol, host: Host::Address(IpAddr::V6(address)), port: port(rest)? });
        }
        if rest.matches(':').count() > 1 {
            return Err("write an IPv6 address in brackets: [ADDRESS]:PORT".to_owned());
        }
        let (host, at) = match rest.split_once(':') {
            Some((host, at)) => (host, Some(at)),
            None => (rest, None),
        };
        let host = match host.parse() {
            Ok(address) => Host::Address(address),
            Err(_) if is_name(host) => Host::Name(host.to_ascii_lowercase()),
            Err(_) => return Err(format!("{host:?} is neither an address nor a name")),
        };
        Ok(Self { protocol, host, port: port(at)? })
    }
}

fn is_name(text: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
    };
    // Digits alone are a misspelt address.
    let text = text.strip_suffix('.').unwrap_or(text);
    text.len() <= 253 && text.split('.').all(label) && text.bytes().any(|byte| byte.is_ascii_alphabetic())
}

/// What a file of expectations says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Expectations {
    /// What can be reached.
    #[serde(default)]
    pub allow: Vec<String>,
    /// What cannot.
    #[serde(default)]
    pub deny: Vec<String>,
}

/// Something to prove.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// What is expected.
    pub expect: Expect,
    /// Of what.
    pub target: Target,
}

/// What the socket saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "seen", content = "errno")]
pub enum Seen {
    /// A connection came about.
    Connected,
    /// An answer came.
    Answered,
    /// The other side refused, so it was reached.
    Refused,
    /// The other side ended the connection, so it was reached.
    Reset,
    /// The datagram was taken, and nothing came back. A denied one is refused with `EPERM`.
    Sent,
    /// Refused with `EPERM`, before anything left the pod.
    NotPermitted,
    /// Nothing happened in time.
    Timeout,
    /// No way there: no route, or a router that says so.
    Unreachable,
    /// A route or a firewall forbids it (`EACCES`).
    Prohibited,
    /// The name has no address, or nobody told it.
    NotResolved,
    /// Another error, by its number; 0 where there is none.
    Failed(i32),
}

/// What that proves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// It is as expected.
    Proven,
    /// It is not.
    Disproven,
    /// Nothing is proven.
    Unproven,
}

impl Outcome {
    /// Returns its word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Proven => "proven",
            Self::Disproven => "DISPROVEN",
            Self::Unproven => "unproven",
        }
    }
}

impl Seen {
    /// Returns what an error of `connect(2)`, `send(2)` or `recv(2)` means.
    #[must_use]
    pub fn of(error: &std::io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::EPERM) => Self::NotPermitted,
            Some(libc::EACCES) => Self::Prohibited,
            Some(libc::ECONNREFUSED) => Self::Refused,
            Some(libc::ECONNRESET | libc::EPIPE) => Self::Reset,
            Some(libc::ETIMEDOUT | libc::EAGAIN | libc::EINPROGRESS) => Self::Timeout,
            Some(
                libc::ENETUNREACH
                | libc::EHOSTUNREACH
                | libc::ENETDOWN
                | libc::EHOSTDOWN
                | libc::EADDRNOTAVAIL
                | libc::EAFNOSUPPORT,
            ) => Self::Unreachable,
            Some(other) => Self::Failed(other),
            None => match error.kind() {
                std::io::ErrorKind::TimedOut | std::io::ErrorKind::WouldBlock => Self::Timeout,
                std::io::ErrorKind::UnexpectedEof => Self::Reset,
                _ => Self::Failed(0),
            },
        }
    }

    /// Returns what it says, in words.
    #[must_use]
    pub fn words(self) -> String {
        match self {
            Self::Connected => "connected".to_owned(),
            Self::Answered => "answered".to_owned(),
            Self::Refused => "refused by the other side, so reached".to_owned(),
            Self::Reset => "ended by the other side, so reached".to_owned(),
            Self::Sent => "sent, no answer".to_owned(),
            Self::NotPermitted => "EPERM: denied before it left the pod".to_owned(),
            Self::Timeout => "timeout: no answer".to_owned(),
            Self::Unreachable => "unreachable: no way there".to_owned(),
            Self::Prohibited => "EACCES: forbidden by a route or a firewall".to_owned(),
            Self::NotResolved => "the name was not resolved".to_owned(),
            Self::Failed(0) => "failed".to_owned(),
            Self::Failed(errno) => format!("failed with errno {errno}"),
        }
    }

    /// Returns what this proves. `denied` is by how much the agent's count of the pod's denials grew meanwhile, where that is known: a
    /// packet that was dropped looks like silence to the socket.
    #[must_use]
    pub fn outcome(self, expect: Expect, denied: Option<u64>) -> Outcome {
        let got_out = match self {
            Self::Connected | Self::Answered | Self::Refused | Self::Reset | Self::Sent => Some(true),
            Self::NotPermitted => Some(false),
            Self::Timeout if denied.is_some_and(|denied| denied > 0) => Some(false),
            Self::Timeout | Self::Unreachable | Self::Prohibited | Self::NotResolved | Self::Failed(_) => {
                None
            }
        };
        match (got_out, expect) {
            (None, _) => Outcome::Unproven,
            (Some(true), Expect::Allow) | (Some(false), Expect::Deny) => Outcome::Proven,
            (Some(_), _) => Outcome::Disproven,
        }
    }
}

/// Returns what is to be proven where nobody says: that the resolvers answer, and that the metadata service and addresses nobody named are
/// denied. The latter are addresses for documentation, so that nobody is bothered when they are not.
#[must_use]
pub fn usual(resolvers: &[IpAddr]) -> Vec<Claim> {
    let claim = |expect, protocol, address: IpAddr, port| Claim {
        expect,
        target: Target { protocol, host: Host::Address(address), port },
    };
    let mut claims = Vec::new();
    for resolver in resolvers {
        for protocol in [Protocol::Dns, Protocol::DnsTcp] {
            claims.push(claim(Expect::Allow, protocol, *resolver, 53));
        }
    }
    for (address, port) in DENIED {
        let address = address.parse().expect("it is one");
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            claims.push(claim(Expect::Deny, protocol, address, port));
        }
    }
    claims
}

/// The metadata service of clouds, and addresses for documentation (RFC 5737, RFC 3849), of both families.
const DENIED: [(&str, u16); 4] =
    [("169.254.169.254", 80), ("fd00:ec2::254", 80), ("203.0.113.77", 443), ("2001:db8:5:77::1", 443)];

/// Returns the addresses in the text of `resolv.conf`.
#[must_use]
pub fn resolvers(text: &str) -> Vec<IpAddr> {
    let words = text.lines().filter_map(|line| line.trim().strip_prefix("nameserver"));
    let addresses = words.filter_map(|rest| rest.split_whitespace().next()?.parse().ok());
    let mut found: Vec<IpAddr> = Vec::new();
    for address in addresses.take(3) {
        if !found.contains(&address) {
            found.push(address);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use std::io::{Error, ErrorKind};

    use super::*;

    #[test]
    fn targets_are_read_and_written() {
        for (text, written) in [
            ("192.0.2.1:443", "tcp://192.0.2.1:443"),
            ("tcp://[2001:db8::1]:443", "tcp://[2001:db8::1]:443"),
            ("udp://192.0.2.1:9", "udp://192.0.2.1:9"),
            ("dns://10.96.0.10", "dns://10.96.0.10:53"),
            ("dns+tcp://[fd00::a]", "dns+tcp://[fd00::a]:53"),
            ("API.example.com:443", "tcp://api.example.com:443"),
        ] {
            let target: Target = text.parse().unwrap_or_else(|why| panic!("{text}: {why}"));
            assert_eq!(target.to_string(), written);
            assert_eq!(written.parse(), Ok(target), "what is written is read");
        }
        for (text, why) in [
            ("192.0.2.1", "a port is missing"),
            ("192.0.2.1:0", "is no port"),
            ("192.0.2.1:70000", "is no port"),
            ("2001:db8::1:443", "in brackets"),
            ("[192.0.2.1]:443", "no IPv6 address"),
            ("[2001:db8::1:443", "`]` is missing"),
            ("300.1.1.1:443", "neither an address nor a name"),
            ("http://example.com:80", "no protocol"),
            ("a b:80", "neither"),
            (":80", "neither"),
        ] {
            let error = text.parse::<Target>().expect_err(text);
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn each_errno_is_told_apart() {
        for (errno, seen) in [
            (libc::EPERM, Seen::NotPermitted),
            (libc::EACCES, Seen::Prohibited),
            (libc::ECONNREFUSED, Seen::Refused),
            (libc::ECONNRESET, Seen::Reset),
            (libc::ETIMEDOUT, Seen::Timeout),
            (libc::EAGAIN, Seen::Timeout),
            (libc::ENETUNREACH, Seen::Unreachable),
            (libc::EHOSTUNREACH, Seen::Unreachable),
            (libc::EINVAL, Seen::Failed(libc::EINVAL)),
        ] {
            assert_eq!(Seen::of(&Error::from_raw_os_error(errno)), seen, "errno {errno}");
        }
        assert_eq!(Seen::of(&Error::from(ErrorKind::TimedOut)), Seen::Timeout);
        assert_eq!(Seen::of(&Error::other("odd")), Seen::Failed(0));
    }

    #[test]
    fn only_what_got_out_or_was_refused_here_proves_anything() {
        use Outcome::{Disproven, Proven, Unproven};
        for (seen, allow, deny) in [
            (Seen::Connected, Proven, Disproven),
            (Seen::Answered, Proven, Disproven),
            (Seen::Refused, Proven, Disproven),
            (Seen::Reset, Proven, Disproven),
            (Seen::Sent, Proven, Disproven),
            (Seen::NotPermitted, Disproven, Proven),
            (Seen::Timeout, Unproven, Unproven),
            (Seen::Unreachable, Unproven, Unproven),
            (Seen::Prohibited, Unproven, Unproven),
            (Seen::NotResolved, Unproven, Unproven),
            (Seen::Failed(5), Unproven, Unproven),
        ] {
            for denied in [None, Some(0)] {
                assert_eq!(seen.outcome(Expect::Allow, denied), allow, "{seen:?}");
                assert_eq!(seen.outcome(Expect::Deny, denied), deny, "{seen:?}");
            }
        }
        // Silence with a denial counted meanwhile is a denial; anything else stays what it was.
        assert_eq!(Seen::Timeout.outcome(Expect::Deny, Some(2)), Proven);
        assert_eq!(Seen::Timeout.outcome(Expect::Allow, Some(2)), Disproven);
        assert_eq!(Seen::Connected.outcome(Expect::Deny, Some(2)), Disproven);
        assert_eq!(Seen::Unreachable.outcome(Expect::Deny, Some(2)), Unproven);
    }

    #[test]
    fn what_is_usual_covers_both_families_names_and_metadata() {
        let text = "search a.b\nnameserver 10.96.0.10\n nameserver fd00::a extra\nnameserver 10.96.0.10\nnameserver no\n";
        let resolvers = resolvers(text);
        let claims: Vec<String> = usual(&resolvers)
            .iter()
            .map(|claim| format!("{} {}", claim.expect.as_str(), claim.target))
            .collect();
        for wanted in [
            "allow dns://10.96.0.10:53",
            "allow dns+tcp://10.96.0.10:53",
            "allow dns+tcp://[fd00::a]:53",
            "deny tcp://169.254.169.254:80",
            "deny udp://203.0.113.77:443",
            "deny tcp://[2001:db8:5:77::1]:443",
        ] {
            assert!(claims.contains(&wanted.to_owned()), "{wanted} is not in {claims:#?}");
        }
        assert_eq!(claims.len(), 4 + 8);
    }
}
