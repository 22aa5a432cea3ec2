//! Real sockets of real processes in pod cgroups and network namespaces, against the datapath driven by hand.

use std::{
    net::{IpAddr, SocketAddr, SocketAddrV4},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use egress_common::verdict::{Reason, Verdict};
use egress_tests::lab::{
    ANSWER_MILLIS, CONNECT_MILLIS, Driver, Host, Lab, Pod, Qos, SILENCE_MILLIS, at,
    direct::{Direct, Ports, Rules, now},
    packet, v4, v6,
    wire::{Outcome, Request, SocketOption},
};

const UID: &str = "01234567-89ab-cdef-0123-456789abcdef";
const OTHER_UID: &str = "fedcba98-7654-3210-fedc-ba9876543210";

/// The pod's addresses.
const POD: [&str; 2] = ["10.244.0.5", "fd00:10:244::5"];
/// The host outside: what it owns.
const OUTSIDE: [&str; 5] =
    ["192.0.2.10", "198.51.100.7", "2001:db8::10", "2001:db8:bad::7", "169.254.169.254"];

/// A lab with one pod, one host outside, and the datapath, not attached yet.
struct Stage {
    direct: Direct,
    pod: Pod,
    out: Arc<Host>,
    lab: Lab,
}

impl Stage {
    fn new() -> Self {
        Self::with(Driver::Cgroupfs, Qos::Burstable)
    }

    fn with(driver: Driver, qos: Qos) -> Self {
        let lab = Lab::new(driver).unwrap_or_else(|error| panic!("{error:#}"));
        lab.node_addresses(&["10.0.0.1", "fd00:10::1"]).unwrap_or_else(|error| panic!("{error:#}"));
        let pod = lab.pod(UID, qos, &POD).unwrap_or_else(|error| panic!("{error:#}"));
        let out = lab.outside(&OUTSIDE).unwrap_or_else(|error| panic!("{error:#}"));
        let direct = Direct::load(lab.kubepods(), None).unwrap_or_else(|error| panic!("{error:#}"));
        Self { direct, pod, out, lab }
    }

    /// Puts rules in force for the pod and attaches.
    fn enforce(&mut self, rules: &Rules) {
        self.direct.govern(&self.pod, rules);
        self.direct.attach();
    }

    fn another_pod(&self, addresses: &[&str]) -> Pod {
        self.lab.pod(OTHER_UID, Qos::Burstable, addresses).unwrap_or_else(|error| panic!("{error:#}"))
    }

    /// Packets of the pod that were denied for this reason, calls included.
    fn denied(&self, reason: Reason) -> u64 {
        self.direct.denied(&self.pod, reason)
    }

    fn allowed(&self, reason: Reason) -> u64 {
        self.direct.allowed(&self.pod, reason)
    }
}

/// What the tests allow that allow something.
fn web() -> Rules {
    Rules::deny().to("192.0.2.0/24", Ports::Tcp(443)).to("2001:db8::/64", Ports::Tcp(443))
}

#[track_caller]
fn connected(host: &Host, to: &str) -> u64 {
    let reply = host.connect(at(to));
    assert_eq!(reply.outcome, Outcome::Ok, "{to} is allowed and someone listens");
    reply.id
}

#[track_caller]
fn local(host: &Host, id: u64, listener: &str) -> (u64, SocketAddr) {
    let reply = host.ask(&Request::Accept { id, millis: ANSWER_MILLIS });
    assert_eq!(reply.outcome, Outcome::Ok, "{listener} accepts");
    (reply.id, reply.from.expect("a TCP peer has an address"))
}

#[test]
fn tcp_reaches_what_is_allowed_and_is_refused_at_once_elsewhere() {
    let mut stage = Stage::new();
    for server in ["192.0.2.10:443", "198.51.100.7:443", "192.0.2.10:80", "[2001:db8::10]:443"] {
        stage.out.serve_tcp(at(server));
    }
    stage.enforce(&web());
    for to in ["192.0.2.10:443", "[2001:db8::10]:443"] {
        let id = connected(&stage.pod, to);
        assert_eq!(stage.pod.exchange(id, ANSWER_MILLIS), Outcome::Ok, "{to}");
    }
    assert!(stage.allowed(Reason::AllowedDestination) >= 6, "two handshakes and what was said");
    assert_eq!(stage.denied(Reason::DefaultDeny), 0);
    let refused = ["198.51.100.7:443", "192.0.2.10:80", "[2001:db8:bad::7]:443", "[2001:db8::10]:80"];
    for (number, to) in (1..).zip(refused) {
        let reply = stage.pod.connect(at(to));
        assert_eq!(reply.outcome, Outcome::NotPermitted, "{to}");
        assert!(reply.millis < 1000.0, "{to} is refused at once, not after {} ms", reply.millis);
        assert_eq!(stage.denied(Reason::DefaultDeny), number, "{to} is counted once");
    }
}

#[test]
fn without_the_connect_hooks_a_denied_connection_times_out() {
    let mut stage = Stage::new();
    let server = stage.out.serve_tcp(at("198.51.100.7:443"));
    stage.direct.connect_hooks(false);
    stage.enforce(&web());
    assert_eq!(stage.pod.connect(at("198.51.100.7:443")).outcome, Outcome::Timeout);
    assert!(stage.denied(Reason::DefaultDeny) >= 1, "the packets are what is denied");
    assert_eq!(stage.out.served(server), 0);
}

#[test]
fn a_denied_destination_beats_what_allows_it() {
    let mut stage = Stage::new();
    stage.out.serve_tcp(at("192.0.2.10:443"));
    stage.enforce(&Rules::allow().not("192.0.2.10", Ports::All));
    assert_eq!(stage.pod.connect(at("192.0.2.10:443")).outcome, Outcome::NotPermitted);
    assert_eq!(stage.denied(Reason::DeniedDestination), 1);
    stage.out.serve_tcp(at("198.51.100.7:443"));
    connected(&stage.pod, "198.51.100.7:443");
    assert!(stage.allowed(Reason::DefaultAllow) >= 2);
}

#[test]
fn datagrams_reach_what_is_allowed_and_are_refused_elsewhere() {
    for hooks in [true, false] {
        let mut stage = Stage::new();
        stage.direct.connect_hooks(hooks);
        stage.out.serve_udp(at("192.0.2.10:53"));
        stage.out.serve_udp(at("[2001:db8::10]:53"));
        let denied = stage.out.serve_udp(at("198.51.100.7:53"));
        stage.enforce(&Rules::deny().to("192.0.2.10", Ports::Udp(53)).to("2001:db8::10", Ports::Udp(53)));
        for to in ["192.0.2.10:53", "[2001:db8::10]:53"] {
            assert_eq!(stage.pod.udp_probe(at(to)), Outcome::Ok, "{to}, hooks {hooks}");
        }
        for (number, to) in (1..).zip(["198.51.100.7:53", "192.0.2.10:54", "[2001:db8:bad::7]:53"]) {
            assert_eq!(stage.pod.udp_probe(at(to)), Outcome::NotPermitted, "{to}, hooks {hooks}");
            assert_eq!(stage.denied(Reason::DefaultDeny), number, "{to}, hooks {hooks}");
        }
        assert_eq!(stage.out.served(denied), 0);
    }
}

/// Resolvers connect datagram sockets to many addresses to learn which source address they would use, and send nothing.
#[test]
fn a_datagram_socket_may_connect_anywhere_but_not_send() {
    let mut stage = Stage::new();
    stage.enforce(&web());
    let id = stage.pod.udp(None);
    let reply = stage.pod.ask(&Request::UdpConnect { id, to: at("198.51.100.7:53") });
    assert_eq!(reply.outcome, Outcome::Ok);
    assert_eq!(stage.denied(Reason::DefaultDeny), 0, "nothing was sent");
    assert_eq!(stage.pod.send(id, None), Outcome::NotPermitted);
    assert_eq!(stage.denied(Reason::DefaultDeny), 1);
}

#[test]
fn a_pod_that_may_reach_nothing_still_answers_connections() {
    for hooks in [true, false] {
        let mut stage = Stage::new();
        stage.direct.connect_hooks(hooks);
        // Listeners of before and of after, of one family and of both.
        stage.pod.serve_tcp(at("10.244.0.5:80"));
        stage.pod.serve_tcp(at("[::]:81"));
        stage.enforce(&Rules::deny());
        stage.pod.serve_tcp(at("[fd00:10:244::5]:82"));
        stage.pod.serve_tcp(at("[::]:83"));
        let servers = [
            "10.244.0.5:80",
            "10.244.0.5:81",
            "[fd00:10:244::5]:81",
            "[fd00:10:244::5]:82",
            "10.244.0.5:83",
            "[fd00:10:244::5]:83",
        ];
        for to in servers {
            // The second connection meets a listener that carries its mark.
            for _ in 0..2 {
                let id = connected(&stage.out, to);
                for _ in 0..3 {
                    assert_eq!(stage.out.exchange(id, ANSWER_MILLIS), Outcome::Ok, "{to}");
                }
                let bulk = Request::Exchange { id, bytes: 30_000, millis: ANSWER_MILLIS };
                assert_eq!(stage.out.ask(&bulk).outcome, Outcome::Ok, "{to}");
                assert_eq!(stage.out.close(id).outcome, Outcome::Ok);
            }
        }
        assert!(stage.allowed(Reason::Reply) > 12, "answers count as replies");
        assert_eq!(stage.denied(Reason::DefaultDeny), 0, "hooks {hooks}");
    }
}

#[test]
fn connections_accepted_before_the_agent_came_keep_working() {
    let mut stage = Stage::new();
    stage.pod.serve_tcp(at("10.244.0.5:80"));
    stage.pod.serve_tcp(at("[::]:81"));
    let ids = ["10.244.0.5:80", "10.244.0.5:81", "[fd00:10:244::5]:81"].map(|to| connected(&stage.out, to));
    for id in ids {
        assert_eq!(stage.out.exchange(id, ANSWER_MILLIS), Outcome::Ok);
    }
    stage.enforce(&Rules::deny());
    for id in ids {
        for _ in 0..3 {
            assert_eq!(stage.out.exchange(id, ANSWER_MILLIS), Outcome::Ok);
        }
    }
    assert!(stage.allowed(Reason::Reply) >= 9);
    assert_eq!(stage.denied(Reason::DefaultDeny), 0);
}

#[test]
fn connections_made_before_the_agent_came_are_judged() {
    let mut stage = Stage::new();
    stage.out.serve_tcp(at("192.0.2.10:443"));
    stage.out.serve_tcp(at("198.51.100.7:443"));
    let good = connected(&stage.pod, "192.0.2.10:443");
    let bad = connected(&stage.pod, "198.51.100.7:443");
    stage.enforce(&web());
    assert_eq!(stage.pod.exchange(good, ANSWER_MILLIS), Outcome::Ok);
    assert_eq!(stage.pod.exchange(bad, SILENCE_MILLIS), Outcome::Timeout);
    assert!(stage.denied(Reason::DefaultDeny) >= 1);
}

#[test]
fn a_datagram_server_answers_whoever_wrote_and_nobody_else() {
    for hooks in [true, false] {
        let mut stage = Stage::new();
        stage.direct.connect_hooks(hooks);
        stage.enforce(&Rules::deny());
        for (own, client) in
            [("10.244.0.5:5353", "192.0.2.10:9999"), ("[fd00:10:244::5]:5353", "[2001:db8::10]:9999")]
        {
            let server = stage.pod.udp(Some(at(own)));
            let client_socket = stage.out.udp(Some(at(client)));
            assert_eq!(stage.pod.send(server, Some(at(client))), Outcome::NotPermitted, "nobody wrote yet");
            assert_eq!(stage.out.send(client_socket, Some(at(own))), Outcome::Ok);
            let asked = stage.pod.receive(server, ANSWER_MILLIS);
            assert_eq!(asked.from, Some(at(client)));
            // Several, since a verdict is kept from the second packet on.
            for _ in 0..3 {
                assert_eq!(stage.pod.send(server, Some(at(client))), Outcome::Ok, "{own}, hooks {hooks}");
                assert_eq!(stage.out.receive(client_socket, ANSWER_MILLIS).outcome, Outcome::Ok);
            }
            let mut other_port = at(client);
            other_port.set_port(9998);
            assert_eq!(stage.pod.send(server, Some(other_port)), Outcome::NotPermitted);
            let other_socket = stage.pod.udp(Some(SocketAddr::new(at(own).ip(), 5354)));
            assert_eq!(stage.pod.send(other_socket, Some(at(client))), Outcome::NotPermitted);
        }
        assert_eq!(stage.allowed(Reason::Reply), 6);
        assert_eq!(stage.denied(Reason::DefaultDeny), 6);
    }
}

#[test]
fn loopback_and_own_addresses_always_pass() {
    let mut stage = Stage::new();
    for server in ["127.0.0.1:80", "[::1]:80", "10.244.0.5:80", "[fd00:10:244::5]:80", "127.9.9.9:80"] {
        stage.pod.serve_tcp(at(server));
        stage.pod.serve_udp(at(server));
    }
    stage.enforce(&Rules::deny());
    for to in ["127.0.0.1:80", "[::1]:80", "10.244.0.5:80", "[fd00:10:244::5]:80", "127.9.9.9:80"] {
        let id = connected(&stage.pod, to);
        assert_eq!(stage.pod.exchange(id, ANSWER_MILLIS), Outcome::Ok, "{to}");
        assert_eq!(stage.pod.udp_probe(at(to)), Outcome::Ok, "{to}");
    }
    assert_eq!(stage.pod.connect(at("0.0.0.0:80")).outcome, Outcome::Ok, "which means this host");
    assert!(stage.allowed(Reason::Local) > 0);
    assert_eq!(stage.denied(Reason::DefaultDeny), 0);
}

#[test]
fn the_metadata_address_and_the_node_get_nothing_for_free() {
    let mut stage = Stage::new();
    let metadata = stage.out.serve_tcp(at("169.254.169.254:80"));
    stage.enforce(&web());
    let targets = ["169.254.169.254:80", "10.0.0.1:10250", "[fd00:10::1]:10250", "[fd00:ec2::254]:80"];
    for (number, to) in (1..).zip(targets) {
        assert_eq!(stage.pod.connect(at(to)).outcome, Outcome::NotPermitted, "{to}");
        assert_eq!(stage.denied(Reason::DefaultDeny), number);
    }
    assert_eq!(stage.out.served(metadata), 0);
}

#[test]
fn icmp_needs_a_rule_that_names_it() {
    let mut stage = Stage::new();
    let addresses: [IpAddr; 2] = [v4("192.0.2.10").into(), v6("2001:db8::10").into()];
    stage.enforce(&Rules::deny().to("192.0.2.10", Ports::Tcp(443)).to("2001:db8::10", Ports::Tcp(443)));
    for to in addresses {
        assert_eq!(stage.pod.ping(to, ANSWER_MILLIS), Outcome::NotPermitted, "{to}");
    }
    assert_eq!(stage.denied(Reason::DefaultDeny), 2);
    stage
        .direct
        .govern(&stage.pod, &Rules::deny().to("192.0.2.10", Ports::Icmp).to("2001:db8::10", Ports::Icmp));
    for to in addresses {
        assert_eq!(stage.pod.ping(to, ANSWER_MILLIS), Outcome::Ok, "{to}");
    }
    for to in [IpAddr::from(v4("10.244.0.5")), v6("fd00:10:244::5").into()] {
        assert_eq!(stage.out.ping(to, ANSWER_MILLIS), Outcome::Ok, "a pod answers pings");
    }
}

#[test]
fn raw_sockets_are_judged_by_what_the_packet_says() {
    let mut stage = Stage::new();
    let good = stage.out.serve_udp(at("192.0.2.10:53"));
    let bad = stage.out.serve_udp(at("198.51.100.7:53"));
    stage.enforce(&Rules::deny().to("192.0.2.10", Ports::Udp(53)).to("2001:db8::10", Ports::Udp(53)));
    let (own, own6) = (v4("10.244.0.5"), v6("fd00:10:244::5"));
    let datagram = |to: &str| packet::udp(at("10.244.0.5:4000"), at(to));
    let to = |destination: &str, payload: &[u8]| packet::V4::plain(17).packet(own, v4(destination), payload);
    let allowed = to("192.0.2.10", &datagram("192.0.2.10:53"));
    for _ in 0..3 {
        assert_eq!(stage.pod.raw(&allowed, v4("192.0.2.10").into()), Outcome::Ok);
    }
    let denied = to("198.51.100.7", &datagram("198.51.100.7:53"));
    assert_eq!(stage.pod.raw(&denied, v4("198.51.100.7").into()), Outcome::NotPermitted);
    // The call names an address that is allowed; what counts is where the packet goes.
    assert_eq!(stage.pod.raw(&denied, v4("192.0.2.10").into()), Outcome::NotPermitted);
    let syn = packet::V4::plain(6).packet(own, v4("192.0.2.10"), &packet::syn(4000, 443));
    assert_eq!(stage.pod.raw(&syn, v4("192.0.2.10").into()), Outcome::NotPermitted);
    let six = |to: &str| {
        packet::v6(
            17,
            own6,
            v6(to),
            &packet::udp(at("[fd00:10:244::5]:4000"), SocketAddr::new(v6(to).into(), 53)),
        )
    };
    assert_eq!(stage.pod.raw(&six("2001:db8::10"), v6("2001:db8::10").into()), Outcome::Ok);
    assert_eq!(stage.pod.raw(&six("2001:db8:bad::7"), v6("2001:db8:bad::7").into()), Outcome::NotPermitted);
    assert_eq!(stage.denied(Reason::DefaultDeny), 4);
    let cut = packet::V4::plain(17).packet(own, v4("192.0.2.10"), &[0, 1, 0, 53]);
    assert_eq!(stage.pod.raw(&cut, v4("192.0.2.10").into()), Outcome::NotPermitted);
    assert_eq!(stage.denied(Reason::InvalidPacket), 1);
    let start = Instant::now();
    while stage.out.served(good) < 3 && start.elapsed() < Duration::from_secs(5) {
        thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(stage.out.served(good), 3);
    assert_eq!(stage.out.served(bad), 0);
}

#[test]
fn fragments_made_by_hand_are_refused() {
    let mut stage = Stage::new();
    stage.enforce(&Rules::deny().to("192.0.2.10", Ports::All).to("2001:db8::10", Ports::All));
    let own = v4("10.244.0.5");
    let datagram = packet::udp(at("10.244.0.5:4000"), at("192.0.2.10:53"));
    const MORE: u16 = 0x2000;
    for (number, fragment) in (1..).zip([MORE, MORE | 3, 3]) {
        let header = packet::V4 { fragment, ..packet::V4::plain(17) };
        let bytes = header.packet(own, v4("192.0.2.10"), &datagram);
        assert_eq!(stage.pod.raw(&bytes, v4("192.0.2.10").into()), Outcome::NotPermitted, "{fragment:#x}");
        assert_eq!(stage.denied(Reason::Fragment), number);
    }
    let mut inner = vec![17, 0, 0, 1, 0, 0, 0, 7];
    inner.extend(packet::udp(at("[fd00:10:244::5]:4000"), at("[2001:db8::10]:53")));
    let bytes = packet::v6(44, v6("fd00:10:244::5"), v6("2001:db8::10"), &inner);
    assert_eq!(stage.pod.raw(&bytes, v6("2001:db8::10").into()), Outcome::NotPermitted);
    assert_eq!(stage.denied(Reason::Fragment), 4);
    // The kernel's own fragments come into being below the hook.
    stage.out.serve_udp(at("192.0.2.10:53"));
    assert_eq!(stage.pod.udp_probe(at("192.0.2.10:53")), Outcome::Ok);
}

#[test]
fn source_routes_are_refused_wherever_they_lead() {
    let mut stage = Stage::new();
    let server = stage.out.serve_udp(at("192.0.2.10:53"));
    stage.enforce(&Rules::allow());
    for kind in [131, 137] {
        let hop = SocketOption {
            level: libc::IPPROTO_IP,
            name: libc::IP_OPTIONS,
            value: vec![kind, 7, 4, 198, 51, 100, 7, 0],
        };
        let options = vec![hop];
        let socket =
            stage.pod.ask(&Request::Udp { at: None, ipv6: false, echo: false, options: options.clone() });
        assert_eq!(socket.outcome, Outcome::Ok, "the option can be set");
        assert_eq!(stage.pod.send(socket.id, Some(at("192.0.2.10:53"))), Outcome::NotPermitted);
        let reply = stage.pod.connect_with(at("192.0.2.10:443"), &options);
        assert_ne!(reply.outcome, Outcome::Ok, "option {kind}");
    }
    assert!(stage.denied(Reason::SourceRoute) >= 4);
    let before = stage.denied(Reason::SourceRoute);
    // A segment routing header with one segment left, through the call made for it.
    let mut header = vec![0, 4, 4, 1, 1, 0, 0, 0];
    header.extend(v6("2001:db8::10").octets());
    header.extend(v6("2001:db8:bad::7").octets());
    let option = SocketOption { level: libc::IPPROTO_IPV6, name: libc::IPV6_RTHDR, value: header.clone() };
    let socket = stage.pod.ask(&Request::Udp { at: None, ipv6: true, echo: false, options: vec![option] });
    assert_eq!(socket.outcome, Outcome::Ok, "the option can be set");
    assert_eq!(stage.pod.send(socket.id, Some(at("[2001:db8::10]:53"))), Outcome::NotPermitted);
    // And by hand, of each kind.
    for kind in [0, 2, 4] {
        let mut inner = header.clone();
        inner[0] = 17;
        inner[2] = kind;
        inner.extend(packet::udp(at("[fd00:10:244::5]:4000"), at("[2001:db8:bad::7]:53")));
        let bytes = packet::v6(43, v6("fd00:10:244::5"), v6("2001:db8::10"), &inner);
        assert_eq!(stage.pod.raw(&bytes, v6("2001:db8::10").into()), Outcome::NotPermitted, "type {kind}");
    }
    assert_eq!(stage.denied(Reason::SourceRoute), before + 4);
    assert_eq!(stage.out.served(server), 0);
    // Other options do not stand in the way.
    let own = v4("10.244.0.5");
    let datagram = packet::udp(at("10.244.0.5:4000"), at("192.0.2.10:53"));
    let padded = packet::V4 { options: vec![1, 1, 1, 0], ..packet::V4::plain(17) };
    assert_eq!(stage.pod.raw(&padded.packet(own, v4("192.0.2.10"), &datagram), own.into()), Outcome::Ok);
}

#[test]
fn mapped_addresses_are_ipv4() {
    for hooks in [true, false] {
        let mut stage = Stage::new();
        stage.direct.connect_hooks(hooks);
        stage.out.serve_tcp(at("192.0.2.10:443"));
        stage.out.serve_udp(at("192.0.2.10:53"));
        let bad = stage.out.serve_tcp(at("198.51.100.7:443"));
        stage.enforce(&Rules::deny().to("192.0.2.10", Ports::Tcp(443)).to("192.0.2.10", Ports::Udp(53)));
        assert_eq!(stage.pod.connect_mapped(at("192.0.2.10:443")).outcome, Outcome::Ok, "hooks {hooks}");
        let wanted = if hooks { Outcome::NotPermitted } else { Outcome::Timeout };
        assert_eq!(stage.pod.connect_mapped(at("198.51.100.7:443")).outcome, wanted);
        let probe = |to: &str| {
            stage.pod.ask(&Request::UdpProbe { to: at(to), mapped: true, millis: ANSWER_MILLIS }).outcome
        };
        assert_eq!(probe("192.0.2.10:53"), Outcome::Ok, "hooks {hooks}");
        assert_eq!(probe("198.51.100.7:53"), Outcome::NotPermitted, "hooks {hooks}");
        assert_eq!(stage.out.served(bad), 0);
    }
}

#[test]
fn an_accepted_socket_cannot_be_turned_into_one_that_calls_out() {
    for hooks in [true, false] {
        let mut stage = Stage::new();
        stage.direct.connect_hooks(hooks);
        let bad = stage.out.serve_tcp(at("198.51.100.7:443"));
        let listener = stage.pod.ask(&Request::Listen { at: at("10.244.0.5:80"), echo: false });
        stage.enforce(&Rules::deny());
        let client = connected(&stage.out, "10.244.0.5:80");
        let (accepted, from) = local(&stage.pod, listener.id, "the pod");
        let wanted = if hooks { Outcome::NotPermitted } else { Outcome::Timeout };
        let reconnect =
            |id, to| stage.pod.ask(&Request::Reconnect { id, to, millis: CONNECT_MILLIS }).outcome;
        assert_eq!(reconnect(accepted, at("198.51.100.7:443")), wanted, "hooks {hooks}");
        assert_eq!(stage.out.close(client).outcome, Outcome::Ok);
        // Back to the very peer it was accepted from: that too is calling out.
        stage.out.serve_tcp(from);
        assert_eq!(reconnect(accepted, from), wanted, "hooks {hooks}");
        assert!(stage.denied(Reason::DefaultDeny) >= 2);
        assert_eq!(stage.out.served(bad), 0);
    }
}

#[test]
fn what_a_pod_writes_to_itself_opens_no_way_out() {
    let mut stage = Stage::new();
    let server = stage.out.serve_udp(at("192.0.2.10:53"));
    stage.enforce(&Rules::deny());
    let socket = stage.pod.udp(Some(at("10.244.0.5:5000")));
    // It looks as if the host outside had written. Were it let through, the pod's own kernel would answer to that host.
    let forged = packet::udp(at("192.0.2.10:53"), at("10.244.0.5:5000"));
    let bytes = packet::V4::plain(17).packet(v4("192.0.2.10"), v4("10.244.0.5"), &forged);
    assert_eq!(stage.pod.raw(&bytes, v4("10.244.0.5").into()), Outcome::NotPermitted, "not from here");
    assert_eq!(stage.pod.send(socket, Some(at("192.0.2.10:53"))), Outcome::NotPermitted);
    assert_eq!(stage.out.served(server), 0);
    let socket6 = stage.pod.udp(Some(at("[fd00:10:244::5]:5000")));
    let forged = packet::udp(at("[2001:db8::10]:53"), at("[fd00:10:244::5]:5000"));
    let bytes = packet::v6(17, v6("2001:db8::10"), v6("fd00:10:244::5"), &forged);
    assert_eq!(stage.pod.raw(&bytes, v6("fd00:10:244::5").into()), Outcome::NotPermitted);
    assert_eq!(stage.pod.send(socket6, Some(at("[2001:db8::10]:53"))), Outcome::NotPermitted);
    // What really comes from here arrives.
    let honest = packet::udp(at("10.244.0.5:4000"), at("10.244.0.5:5000"));
    let bytes = packet::V4::plain(17).packet(v4("10.244.0.5"), v4("10.244.0.5"), &honest);
    assert_eq!(stage.pod.raw(&bytes, v4("10.244.0.5").into()), Outcome::Ok);
    assert_eq!(stage.pod.receive(socket, ANSWER_MILLIS).from, Some(at("10.244.0.5:4000")));
}

/// Nothing is special about the process but that it may make user namespaces, as anyone may.
#[test]
fn what_reaches_a_namespace_of_the_pods_own_making_opens_no_way_out() {
    for hooks in [true, false] {
        let mut stage = Stage::new();
        stage.direct.connect_hooks(hooks);
        let server = stage.out.serve_udp(at("192.0.2.10:5353"));
        stage.enforce(&Rules::deny());
        let socket = stage.pod.udp(Some(at("10.244.0.5:5555")));
        assert_eq!(stage.pod.send(socket, Some(at("192.0.2.10:5353"))), Outcome::NotPermitted);
        // As if the host outside had written to the very same address and port.
        let forge = Request::Forge {
            from: SocketAddrV4::new(v4("192.0.2.10"), 5353),
            to: SocketAddrV4::new(v4("10.244.0.5"), 5555),
        };
        assert_eq!(stage.pod.ask(&forge).outcome, Outcome::Ok, "it arrives there");
        assert_eq!(stage.pod.send(socket, Some(at("192.0.2.10:5353"))), Outcome::NotPermitted);
        assert_eq!(stage.out.served(server), 0);
        assert_eq!(stage.allowed(Reason::Reply), 0);
    }
}

/// The pod's own kernel would answer to the address such a socket claims.
#[test]
fn a_socket_with_a_foreign_source_may_not_even_write_to_the_pod_itself() {
    let yes = 1_i32.to_ne_bytes().to_vec();
    let foreign = [
        ("[2001:db8:bad::7]:9999", "[fd00:10:244::5]:7777", libc::IPPROTO_IPV6, libc::IPV6_FREEBIND),
        ("[2001:db8:bad::7]:9998", "[fd00:10:244::5]:7777", libc::IPPROTO_IPV6, libc::IPV6_TRANSPARENT),
        ("198.51.100.7:9999", "10.244.0.5:7777", libc::IPPROTO_IP, libc::IP_TRANSPARENT),
    ];
    for hooks in [true, false] {
        let mut stage = Stage::new();
        stage.direct.connect_hooks(hooks);
        let servers = foreign.each_ref().map(|(source, ..)| stage.out.serve_tcp(at(source)));
        stage.enforce(&Rules::deny());
        stage.pod.serve_udp(at("[fd00:10:244::5]:7777"));
        stage.pod.serve_udp(at("10.244.0.5:7777"));
        stage.pod.serve_tcp(at("[fd00:10:244::5]:7777"));
        stage.pod.serve_tcp(at("10.244.0.5:7777"));
        for (number, (source, own, level, name)) in (1..).zip(&foreign) {
            let options = vec![SocketOption { level: *level, name: *name, value: yes.clone() }];
            let (from, to) = (at(source), at(own));
            let bound =
                Request::Udp { at: Some(from), ipv6: from.is_ipv6(), echo: false, options: options.clone() };
            let socket = stage.pod.ask(&bound);
            assert_eq!(socket.outcome, Outcome::Ok, "{source} can be claimed");
            assert_eq!(stage.pod.send(socket.id, Some(to)), Outcome::NotPermitted, "{source}");
            let closed = SocketAddr::new(to.ip(), 1);
            assert_eq!(stage.pod.send(socket.id, Some(closed)), Outcome::NotPermitted, "{source}");
            let connect = Request::ConnectFrom { from, to, options, millis: CONNECT_MILLIS };
            assert_eq!(stage.pod.ask(&connect).outcome, Outcome::Timeout, "{source}");
            assert!(stage.denied(Reason::DefaultDeny) >= 3 * number, "{source}: each packet is counted");
        }
        assert_eq!(stage.allowed(Reason::Local) + stage.allowed(Reason::Reply), 0);
        assert_eq!(servers.map(|server| stage.out.served(server)), [0; 3]);
    }
}

#[test]
fn a_listener_that_had_connected_before_answers_like_any_other() {
    let mut stage = Stage::new();
    stage.out.serve_tcp(at("192.0.2.10:443"));
    stage.out.serve_tcp(at("[2001:db8::10]:443"));
    stage.enforce(&web());
    for (own, first, client) in [
        ("10.244.0.5:7000", "192.0.2.10:443", "198.51.100.7:9000"),
        ("[fd00:10:244::5]:7000", "[2001:db8::10]:443", "[2001:db8:bad::7]:9000"),
    ] {
        let (own, client) = (at(own), at(client));
        let connect =
            Request::ConnectFrom { from: own, to: at(first), options: Vec::new(), millis: CONNECT_MILLIS };
        let socket = stage.pod.ask(&connect);
        assert_eq!(socket.outcome, Outcome::Ok, "{first} is allowed");
        assert_eq!(stage.pod.exchange(socket.id, ANSWER_MILLIS), Outcome::Ok);
        assert_eq!(stage.pod.ask(&Request::TurnListener { id: socket.id }).outcome, Outcome::Ok);
        let connect =
            Request::ConnectFrom { from: client, to: own, options: Vec::new(), millis: CONNECT_MILLIS };
        let connection = stage.out.ask(&connect);
        assert_eq!(connection.outcome, Outcome::Ok, "{own} answers");
        let accepted = local(&stage.pod, socket.id, "the pod");
        assert_eq!(accepted.1, client);
        // Each side writes, then reads what the other has written.
        let (said, answered) = thread::scope(|scope| {
            let saying = scope.spawn(|| stage.out.exchange(connection.id, ANSWER_MILLIS));
            let answered = stage.pod.exchange(accepted.0, ANSWER_MILLIS);
            (saying.join().expect("the thread does not panic"), answered)
        });
        let denied = stage.denied(Reason::DefaultDeny);
        assert_eq!((said, answered), (Outcome::Ok, Outcome::Ok), "{own}, {denied} packets denied");
    }
    assert_eq!(stage.denied(Reason::DefaultDeny), 0);
    assert!(stage.allowed(Reason::Reply) >= 4);
}

#[test]
fn a_socket_passed_on_is_judged_as_its_makers() {
    let mut stage = Stage::new();
    let server = stage.out.serve_udp(at("192.0.2.10:53"));
    let free = stage.another_pod(&["10.244.0.6"]);
    stage.direct.govern(&free, &Rules::allow());
    stage.enforce(&Rules::deny());
    let path = stage.lab.folder.join("passed");
    let pass = |from: &Pod, to: &Pod, path: std::path::PathBuf| {
        let socket = from.udp(None);
        thread::scope(|scope| {
            let taken = scope.spawn(|| to.ask(&Request::Take { path: path.clone(), millis: ANSWER_MILLIS }));
            while !path.exists() {
                thread::sleep(Duration::from_millis(2));
            }
            // The path stands between bind and listen already.
            let mut passed = from.ask(&Request::Pass { id: socket, path: path.clone() });
            while passed.outcome == Outcome::Refused {
                passed = from.ask(&Request::Pass { id: socket, path: path.clone() });
            }
            assert_eq!(passed.outcome, Outcome::Ok);
            let taken = taken.join().expect("the thread does not panic");
            assert_eq!(taken.outcome, Outcome::Ok);
            taken.id
        })
    };
    let held = pass(&stage.pod, &free, path.with_extension("1"));
    assert_eq!(free.send(held, Some(at("192.0.2.10:53"))), Outcome::NotPermitted, "its maker may not");
    assert_eq!(stage.denied(Reason::DefaultDeny), 1);
    assert_eq!(stage.out.served(server), 0);
    stage.direct.connect_hooks(false);
    let held = pass(&free, &stage.pod, path.with_extension("2"));
    assert_eq!(stage.pod.send(held, Some(at("192.0.2.10:53"))), Outcome::Ok, "its maker may");
}

#[test]
fn a_change_applies_to_open_connections_at_their_next_packet() {
    let mut stage = Stage::new();
    stage.out.serve_tcp(at("192.0.2.10:443"));
    stage.out.serve_udp(at("192.0.2.10:53"));
    let both = Rules::deny().to("192.0.2.10", Ports::Tcp(443)).to("192.0.2.10", Ports::Udp(53));
    stage.enforce(&both);
    let tcp = connected(&stage.pod, "192.0.2.10:443");
    assert_eq!(stage.pod.exchange(tcp, ANSWER_MILLIS), Outcome::Ok);
    let udp = stage.pod.udp(None);
    for _ in 0..3 {
        assert_eq!(stage.pod.send(udp, Some(at("192.0.2.10:53"))), Outcome::Ok);
    }
    stage.direct.govern(&stage.pod, &Rules::deny());
    assert_eq!(stage.pod.send(udp, Some(at("192.0.2.10:53"))), Outcome::NotPermitted);
    assert_eq!(stage.pod.exchange(tcp, SILENCE_MILLIS), Outcome::Timeout);
    assert!(stage.denied(Reason::DefaultDeny) >= 2);
    stage.direct.govern(&stage.pod, &both);
    assert_eq!(stage.pod.send(udp, Some(at("192.0.2.10:53"))), Outcome::Ok);
    let again = connected(&stage.pod, "192.0.2.10:443");
    assert_eq!(stage.pod.exchange(again, ANSWER_MILLIS), Outcome::Ok);
}

#[test]
fn a_reply_stays_a_reply_through_changes_of_policy() {
    let mut stage = Stage::new();
    stage.pod.serve_tcp(at("10.244.0.5:80"));
    stage.enforce(&Rules::deny());
    let id = connected(&stage.out, "10.244.0.5:80");
    for rules in [Rules::deny(), Rules::allow(), Rules::deny().not("192.0.2.0/24", Ports::All)] {
        assert_eq!(stage.out.exchange(id, ANSWER_MILLIS), Outcome::Ok);
        stage.direct.govern(&stage.pod, &rules);
        assert_eq!(stage.out.exchange(id, ANSWER_MILLIS), Outcome::Ok);
    }
    assert_eq!(stage.denied(Reason::DefaultDeny) + stage.denied(Reason::DeniedDestination), 0);
}

#[test]
fn an_unknown_pod_is_denied_in_strict_mode_and_counted_in_standard_mode() {
    let mut stage = Stage::new();
    stage.out.serve_tcp(at("192.0.2.10:443"));
    stage.pod.serve_tcp(at("127.0.0.1:80"));
    stage.direct.attach();
    assert_eq!(stage.pod.connect(at("192.0.2.10:443")).outcome, Outcome::NotPermitted);
    assert_eq!(stage.direct.counter(None, Verdict::Deny, Reason::UnknownPod).packets, 1);
    connected(&stage.pod, "127.0.0.1:80");
    stage.direct.connect_hooks(false);
    assert_eq!(stage.pod.connect(at("192.0.2.10:443")).outcome, Outcome::Timeout);
    assert!(stage.direct.counter(None, Verdict::Deny, Reason::UnknownPod).packets > 1);
    stage.direct.strict(false);
    connected(&stage.pod, "192.0.2.10:443");
    assert!(stage.direct.counter(None, Verdict::Allow, Reason::Unprotected).packets >= 2);
}

#[test]
fn a_pod_whose_policy_is_not_known_yet_may_be_let_through_on_a_strict_node() {
    for hooks in [true, false] {
        let mut stage = Stage::new();
        stage.direct.connect_hooks(hooks);
        stage.out.serve_tcp(at("198.51.100.7:443"));
        stage.out.serve_udp(at("198.51.100.7:53"));
        stage.pod.serve_tcp(at("127.0.0.1:80"));
        stage.direct.unprotected(&stage.pod);
        stage.direct.attach();
        let counted = |stage: &Stage, verdict, reason| stage.direct.counter(None, verdict, reason).packets;
        let id = connected(&stage.pod, "198.51.100.7:443");
        assert_eq!(stage.pod.exchange(id, ANSWER_MILLIS), Outcome::Ok);
        assert_eq!(stage.pod.udp_probe(at("198.51.100.7:53")), Outcome::Ok, "hooks {hooks}");
        let before = counted(&stage, Verdict::Allow, Reason::Unprotected);
        assert!(before >= 4, "a handshake, what was said, and a datagram: {before}");
        connected(&stage.pod, "127.0.0.1:80");
        assert!(counted(&stage, Verdict::Allow, Reason::Local) >= 2);
        assert_eq!(counted(&stage, Verdict::Deny, Reason::UnknownPod), 0);
        // From then on its open connections are judged.
        stage.direct.govern(&stage.pod, &Rules::deny());
        assert_eq!(stage.pod.exchange(id, SILENCE_MILLIS), Outcome::Timeout);
        assert!(stage.denied(Reason::DefaultDeny) >= 1);
        assert_eq!(counted(&stage, Verdict::Deny, Reason::UnknownPod), 0);
    }
}

#[test]
fn a_pod_no_policy_governs_passes_uncounted() {
    let mut stage = Stage::new();
    stage.out.serve_tcp(at("198.51.100.7:443"));
    stage.direct.leave(&stage.pod);
    stage.direct.attach();
    let id = connected(&stage.pod, "198.51.100.7:443");
    assert_eq!(stage.pod.exchange(id, ANSWER_MILLIS), Outcome::Ok);
    assert_eq!(stage.direct.counter(None, Verdict::Allow, Reason::Unprotected).packets, 0);
    // From then on its open connections are judged.
    stage.direct.govern(&stage.pod, &Rules::deny());
    assert_eq!(stage.pod.exchange(id, SILENCE_MILLIS), Outcome::Timeout);
    assert!(stage.denied(Reason::DefaultDeny) >= 1);
}

#[test]
fn a_pod_on_the_host_network_is_a_pod() {
    let mut stage = Stage::new();
    stage.out.serve_tcp(at("192.0.2.10:443"));
    stage.out.serve_tcp(at("198.51.100.7:443"));
    let pod =
        stage.lab.host_network_pod(OTHER_UID, Qos::BestEffort).unwrap_or_else(|error| panic!("{error:#}"));
    stage.direct.govern(&pod, &web());
    stage.enforce(&Rules::deny());
    connected(&pod, "192.0.2.10:443");
    assert_eq!(pod.connect(at("198.51.100.7:443")).outcome, Outcome::NotPermitted);
    assert_eq!(stage.direct.denied(&pod, Reason::DefaultDeny), 1);
    assert_eq!(stage.denied(Reason::DefaultDeny), 0, "the other pod is another pod");
}

#[test]
fn an_audited_policy_lets_pass_and_counts() {
    let mut stage = Stage::new();
    stage.out.serve_tcp(at("192.0.2.10:443"));
    stage.out.serve_tcp(at("198.51.100.7:443"));
    let rules = Rules::audit().to("192.0.2.10", Ports::All).audit_not("2001:db8::/32", Ports::All);
    stage.enforce(&rules);
    connected(&stage.pod, "192.0.2.10:443");
    let audited =
        |stage: &Stage, reason| stage.direct.counter(Some(&stage.pod), Verdict::Audit, reason).packets;
    assert_eq!(audited(&stage, Reason::DefaultDeny), 0);
    let id = connected(&stage.pod, "198.51.100.7:443");
    assert_eq!(stage.pod.exchange(id, ANSWER_MILLIS), Outcome::Ok);
    assert!(audited(&stage, Reason::DefaultDeny) >= 3, "each packet is counted, not only the first");
    let before = audited(&stage, Reason::DeniedDestination);
    let udp = stage.pod.udp(Some(at("[fd00:10:244::5]:4000")));
    assert_eq!(stage.pod.send(udp, Some(at("[2001:db8::10]:53"))), Outcome::Ok);
    assert_eq!(audited(&stage, Reason::DeniedDestination), before + 1);
    assert_eq!(stage.denied(Reason::DefaultDeny), 0);
}

#[test]
fn an_exception_ends_in_the_kernel_also_on_open_connections() {
    let mut stage = Stage::new();
    stage.out.serve_tcp(at("192.0.2.10:443"));
    stage.out.serve_udp(at("192.0.2.10:53"));
    let end = now() + 4;
    stage.enforce(&Rules::deny().until("192.0.2.10", Ports::Tcp(443), end).until(
        "192.0.2.10",
        Ports::Udp(53),
        end,
    ));
    let id = connected(&stage.pod, "192.0.2.10:443");
    assert_eq!(stage.pod.exchange(id, 1000), Outcome::Ok);
    let udp = stage.pod.udp(None);
    for _ in 0..3 {
        assert_eq!(stage.pod.send(udp, Some(at("192.0.2.10:53"))), Outcome::Ok);
    }
    assert!(now() < end, "the machine is far too slow for this test");
    while now() < end {
        thread::sleep(Duration::from_millis(20));
    }
    // The kernel's clock ticks a few milliseconds apart.
    thread::sleep(Duration::from_millis(50));
    assert_eq!(stage.pod.send(udp, Some(at("192.0.2.10:53"))), Outcome::NotPermitted);
    assert_eq!(stage.pod.exchange(id, SILENCE_MILLIS), Outcome::Timeout);
    assert_eq!(stage.pod.connect(at("192.0.2.10:443")).outcome, Outcome::NotPermitted);
    assert!(stage.denied(Reason::Expired) >= 3);
    assert_eq!(stage.denied(Reason::DefaultDeny), 0, "the reason is that it has expired");
}

#[test]
fn every_layout_kubelet_makes_is_enforced() {
    for driver in [Driver::Cgroupfs, Driver::Systemd] {
        for qos in [Qos::Guaranteed, Qos::Burstable, Qos::BestEffort] {
            let mut stage = Stage::with(driver, qos);
            stage.out.serve_tcp(at("192.0.2.10:443"));
            stage.enforce(&web());
            connected(&stage.pod, "192.0.2.10:443");
            let outcome = stage.pod.connect(at("198.51.100.7:443")).outcome;
            assert_eq!(outcome, Outcome::NotPermitted, "{driver:?} {qos:?}");
            assert_eq!(stage.denied(Reason::DefaultDeny), 1, "{driver:?} {qos:?}");
        }
    }
}

#[test]
fn processes_outside_the_pods_are_left_alone() {
    let mut stage = Stage::new();
    stage.out.serve_tcp(at("192.0.2.10:443"));
    stage.enforce(&Rules::deny());
    connected(&stage.out, "192.0.2.10:443");
    let client = stage.lab.outside(&["203.0.113.5"]).unwrap_or_else(|error| panic!("{error:#}"));
    let id = connected(&client, "192.0.2.10:443");
    assert_eq!(client.exchange(id, ANSWER_MILLIS), Outcome::Ok);
}

/// Ten thousand rules of which every one says the opposite after the change, under load.
#[test]
fn a_packet_sees_the_old_policy_or_the_new_one_and_never_a_mixture() {
    let mut stage = Stage::new();
    stage.out.serve_tcp(at("192.0.2.10:443"));
    let addresses = |odd: bool| {
        let mut rules = Rules::deny().to("192.0.2.10", Ports::All);
        for number in (0u32..10_000).filter(|number| (number % 2 == 1) == odd) {
            let [_, _, high, low] = number.to_be_bytes();
            rules = rules.to(&format!("10.77.{high}.{low}"), Ports::Udp(53));
        }
        // Of the two that are watched each policy allows one.
        rules.to(if odd { "198.51.100.7" } else { "169.254.169.254" }, Ports::Udp(53))
    };
    let policies = [addresses(false), addresses(true)];
    stage.enforce(&policies[0]);
    let pumped = connected(&stage.pod, "192.0.2.10:443");
    let pump = stage.pod.ask(&Request::Pump { id: pumped, micros: 200 }).id;
    let to = ["169.254.169.254:53", "198.51.100.7:53", "192.0.2.10:53", "203.0.113.9:53"].map(at).to_vec();
    for round in 1..=4 {
        let watch = stage.pod.ask(&Request::Watch { to: to.clone(), micros: 0 }).id;
        thread::sleep(Duration::from_millis(100));
        stage.direct.govern(&stage.pod, &policies[round % 2]);
        thread::sleep(Duration::from_millis(100));
        let seen = stage.pod.close(watch);
        let mut ends = [(Outcome::Ok, Outcome::NotPermitted), (Outcome::NotPermitted, Outcome::Ok)];
        if round % 2 == 0 {
            ends.reverse();
        }
        let of = |place: usize| -> Vec<Outcome> {
            seen.changes.iter().filter(|change| change.1 == place).map(|change| change.2).collect()
        };
        for (place, (before, after)) in ends.into_iter().enumerate() {
            assert_eq!(of(place), [before, after], "one change, from the old policy to the new: {seen:?}");
        }
        assert_eq!(of(2), [Outcome::Ok], "both policies allow it, so it never fails: {seen:?}");
        assert_eq!(of(3), [Outcome::NotPermitted], "both policies deny it, so it never passes: {seen:?}");
        // From the first datagram that saw the new policy on, all did: the other address changes within one turn.
        let moments: Vec<u64> = seen.changes.iter().filter(|change| change.0 >= 4).map(|c| c.0).collect();
        assert!(moments[1] - moments[0] <= 4, "the change is one step: {seen:?}");
    }
    let pumped = stage.pod.close(pump);
    assert!(pumped.count(Outcome::Ok) > 10, "{pumped:?}");
    assert_eq!(pumped.counts.len(), 1, "the allowed connection never broke: {pumped:?}");
}

/// The peer's answers must not make a flow of the pod's into replies: neither unseen by the audit, nor once it is enforced.
#[test]
fn an_audited_datagram_flow_is_cut_when_the_policy_is_enforced() {
    let mut stage = Stage::new();
    stage.out.serve_udp(at("192.0.2.10:53"));
    stage.enforce(&Rules::audit());
    let socket = stage.pod.udp(None);
    for _ in 0..3 {
        assert_eq!(stage.pod.send(socket, Some(at("192.0.2.10:53"))), Outcome::Ok);
        assert_eq!(stage.pod.receive(socket, ANSWER_MILLIS).outcome, Outcome::Ok);
    }
    let audited = stage.direct.counter(Some(&stage.pod), Verdict::Audit, Reason::DefaultDeny).packets;
    assert_eq!(audited, 3, "each is audited, answered or not");
    stage.direct.govern(&stage.pod, &Rules::deny());
    assert_eq!(stage.pod.send(socket, Some(at("192.0.2.10:53"))), Outcome::NotPermitted);
    // A server's answers are no violation in audit either.
    stage.direct.govern(&stage.pod, &Rules::audit());
    let server = stage.pod.udp(Some(at("10.244.0.5:5353")));
    let client = stage.out.udp(Some(at("192.0.2.10:9999")));
    assert_eq!(stage.out.send(client, Some(at("10.244.0.5:5353"))), Outcome::Ok);
    assert_eq!(stage.pod.receive(server, ANSWER_MILLIS).outcome, Outcome::Ok);
    assert_eq!(stage.pod.send(server, Some(at("192.0.2.10:9999"))), Outcome::Ok);
    assert_eq!(stage.allowed(Reason::Reply), 1);
    stage.direct.govern(&stage.pod, &Rules::deny());
    assert_eq!(stage.pod.send(server, Some(at("192.0.2.10:9999"))), Outcome::Ok, "and go on");
}

#[test]
fn every_connection_of_a_burst_is_refused_and_counted() {
    let mut stage = Stage::new();
    stage.enforce(&web());
    let burst =
        stage.pod.ask(&Request::Burst { to: at("198.51.100.7:443"), count: 500, millis: CONNECT_MILLIS });
    assert_eq!(burst.count(Outcome::NotPermitted), 500, "{burst:?}");
    assert_eq!(stage.denied(Reason::DefaultDeny), 500);
}
