//! What objects may hold, and how rules are spread over them.

use std::{collections::BTreeMap, rc::Rc};

use ipnet::IpNet;

use super::{
    Direction, Draft, EgressRule, Inexpressible, Loss, LossKind, NetworkPolicy, Options, Peer, names,
    pieces::{Piece, Place},
    ports::{self, Range},
};
use crate::policy::{
    addresses::Addresses,
    cluster::NsName,
    model::{LabelSelector, Operator, PortMatch, PortSpec, Protocol},
};

/// How large objects may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most bytes of an object's JSON. The API server takes 3 MiB in a request and etcd 1.5 MiB in a value (`--max-request-bytes`), and
    /// whoever applies an object by hand has 256 KiB for its annotation (`TotalAnnotationSizeLimitB`), which holds it once more.
    pub object_bytes: usize,
    /// Most peers of an object. No API limit; it keeps one object readable, and a change of one prefix small.
    pub object_peers: usize,
    /// Most distinct combinations of protocol and ports at one address, of all objects that select the pod. VPC CNI's maps have
    /// `MAX_PORT_PROTOCOL` = 24 slots for a CIDR, which inherits those of the CIDRs around it, and drops the rest in silence.
    pub port_entries: usize,
    /// Most single addresses that `world` leaves out.
    pub single: usize,
    /// Most prefixes left out of one block (`except`). Beyond them, what remains is listed instead; with 0 always.
    pub except: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { object_bytes: 200 << 10, object_peers: 1000, port_entries: 24, single: 64, except: 500 }
    }
}

/// A combination of protocol and ports that takes a slot.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Entry {
    Range(Range),
    Name(Protocol, String),
}

fn entries(piece: &Piece) -> impl Iterator<Item = Entry> {
    let numbers = piece.ports.iter().copied().map(Entry::Range);
    numbers.chain(piece.names.iter().map(|(protocol, name)| Entry::Name(*protocol, name.clone())))
}

/// How many pieces are folded at most for one object: each costs a look at all of them.
const MOST_FOLDED: usize = 64;
/// With more pieces than this, nothing is folded: even counting what meets where takes the square of their number.
const MOST_PIECES: usize = 4096;

fn unfolded(text: String) -> Loss {
    Loss {
        kind: LossKind::PortEntries,
        destination: None,
        direction: None,
        addresses: Addresses::default(),
        ports: Vec::new(),
        text,
    }
}

/// Folds ports of `objects` until no address has more entries than VPC CNI takes, with those that `others` have for the same pods.
pub(super) fn fold(
    objects: &mut [(LabelSelector, Vec<Piece>)],
    others: &[Rc<Draft>],
    options: &Options,
    losses: &mut Vec<Loss>,
) {
    let most = options.limits.port_entries;
    for at in 0..objects.len() {
        let mut pieces = std::mem::take(&mut objects[at].1);
        let selector = objects[at].0.clone();
        let foreign: Vec<&Piece> = others
            .iter()
            .flat_map(|draft| &draft.objects)
            .chain(&*objects)
            .filter(|(other, _)| super::selectors::overlap(&selector, other))
            .flat_map(|(_, pieces)| pieces)
            .collect();
        if pieces.len() + foreign.len() > MOST_PIECES {
            losses.push(unfolded(format!(
                "with more than {MOST_PIECES} pieces it is not looked whether VPC CNI enforces all combinations of protocol and ports"
            )));
            objects[at].1 = pieces;
            continue;
        }
        // Each round folds one piece as far as it can be.
        let mut tried = vec![false; pieces.len()];
        let mut rounds = 0;
        while let Some((count, own)) = worst(&pieces, &foreign, most) {
            rounds += 1;
            // What has one range cannot be folded.
            let foldable = |at: &usize| rounds <= MOST_FOLDED && !tried[*at] && pieces[*at].ports.len() > 1;
            let at = own.into_iter().filter(foldable).max_by_key(|at| pieces[*at].ports.len());
            let excess = count - most;
            let folded = at.filter(|_| options.inexpressible == Inexpressible::Widen).map(|at| {
                tried[at] = true;
                (at, ports::folded(&pieces[at].ports, excess))
            });
            let Some((at, folded)) = folded else {
                let text = format!(
                    "{count} combinations of protocol and ports meet at one address; VPC CNI enforces {most} of them"
                );
                losses.push(unfolded(text));
                break;
            };
            let piece = &mut pieces[at];
            let more = ports::minus(&folded, &piece.ports);
            if !more.is_empty() {
                losses.push(Loss {
                    kind: LossKind::PortEntries,
                    destination: piece.destination.as_deref().map(str::to_owned),
                    direction: Some(Direction::Wider),
                    addresses: piece.place.addresses().clone(),
                    ports: more,
                    text: format!(
                        "{count} combinations of protocol and ports meet at one address, and VPC CNI takes {most}: ranges are joined over the gaps between them"
                    ),
                });
            }
            piece.ports = folded;
        }
        objects[at].1 = pieces;
    }
}

/// Returns how many entries meet where most do, if they are more than `most`, and which of `own` pieces are there.
fn worst(own: &[Piece], foreign: &[&Piece], most: usize) -> Option<(usize, Vec<usize>)> {
    let mut kinds: BTreeMap<Entry, usize> = BTreeMap::new();
    let mut number = |piece: &Piece| -> Vec<usize> {
        let numbered = entries(piece).map(|entry| {
            let next = kinds.len();
            *kinds.entry(entry).or_insert(next)
        });
        numbered.collect()
    };
    let mut all: Vec<(Vec<usize>, &Piece, Option<usize>)> = Vec::with_capacity(own.len() + foreign.len());
    for (at, piece) in own.iter().enumerate() {
        all.push((number(piece), piece, Some(at)));
    }
    for piece in foreign {
        all.push((number(piece), piece, None));
    }
    let count = kinds.len();
    if count <= most {
        return None;
    }
    // At an address where an own piece begins, and only there, may more meet than at all others before it.
    let mut events: Vec<(bool, u128, bool, usize)> = Vec::new();
    for (index, (_, piece, _)) in all.iter().enumerate() {
        for net in piece.place.addresses().nets() {
            let (v6, first, last) = bounds(net);
            events.push((v6, first, false, index));
            events.push((v6, last, true, index));
        }
    }
    // Of one address, what begins comes before what ends.
    events.sort_unstable();
    let mut active = vec![0_usize; all.len()];
    let mut meeting = vec![0_usize; count];
    let (mut here, mut found): (usize, Option<(usize, Vec<usize>)>) = (0, None);
    for (_, _, ends, index) in events {
        if ends {
            active[index] -= 1;
            if active[index] == 0 {
                for entry in &all[index].0 {
                    meeting[*entry] -= 1;
                    here -= usize::from(meeting[*entry] == 0);
                }
            }
            continue;
        }
        active[index] += 1;
        if active[index] > 1 {
            continue;
        }
        for entry in &all[index].0 {
            here += usize::from(meeting[*entry] == 0);
            meeting[*entry] += 1;
        }
        if here > most && found.as_ref().is_none_or(|(count, _)| here > *count) {
            let own: Vec<usize> = all
                .iter()
                .zip(&active)
                .filter(|(_, active)| **active > 0)
                .filter_map(|((_, _, own), _)| *own)
                .collect();
            if !own.is_empty() {
                found = Some((here, own));
            }
        }
    }
    found
}

fn bounds(net: IpNet) -> (bool, u128, u128) {
    match net {
        IpNet::V4(net) => (false, net.network().to_bits().into(), net.broadcast().to_bits().into()),
        IpNet::V6(net) => (true, net.network().to_bits(), net.broadcast().to_bits()),
    }
}

/// Returns the objects of a policy.
pub(super) fn packed(
    policy: &NsName,
    objects: Vec<(LabelSelector, Vec<Piece>)>,
    limits: &Limits,
) -> Vec<NetworkPolicy> {
    let mut packed: Vec<NetworkPolicy> = Vec::new();
    for (selector, pieces) in objects {
        let begin = |packed: &mut Vec<NetworkPolicy>| {
            let name = names::object_name(&policy.name, packed.len());
            let id = NsName::new(policy.namespace.as_str(), name);
            packed.push(NetworkPolicy { id, selector: selector.clone(), egress: Vec::new() });
        };
        begin(&mut packed);
        let (mut bytes, mut peers) = (0, 0);
        for rule in rules(pieces, limits.except) {
            let ports_bytes = 40 + 70 * rule.ports.len();
            if rule.to.is_empty() {
                bytes += ports_bytes;
                packed.last_mut().expect("one was begun").egress.push(rule);
                continue;
            }
            let mut open = false;
            for peer in rule.to {
                let size = size(&peer);
                let full = peers + 1 > limits.object_peers
                    || bytes + size + if open { 0 } else { ports_bytes } > limits.object_bytes;
                if full && peers > 0 {
                    begin(&mut packed);
                    (bytes, peers, open) = (0, 0, false);
                }
                let egress = &mut packed.last_mut().expect("one was begun").egress;
                if !open {
                    egress.push(EgressRule { to: Vec::new(), ports: rule.ports.clone() });
                    bytes += ports_bytes;
                    open = true;
                }
                egress.last_mut().expect("a rule was begun").to.push(peer);
                bytes += size;
                peers += 1;
            }
        }
    }
    packed
}

/// Returns rules, each of the pieces of one destination with the same ports.
fn rules(pieces: Vec<Piece>, most_except: usize) -> Vec<EgressRule> {
    let mut rules: Vec<(Option<std::sync::Arc<str>>, EgressRule)> = Vec::new();
    for piece in pieces {
        let mut ports = ports::items(&piece.ports).unwrap_or_default();
        if piece.ports != [ports::EVERYTHING] {
            ports.extend(piece.names.iter().map(|(protocol, name)| PortSpec {
                protocol: *protocol,
                port: PortMatch::Name(name.clone()),
            }));
            // Without any it would be all ports.
            if ports.is_empty() {
                continue;
            }
        }
        let to = match piece.place {
            Place::Blocks { addresses, .. } if addresses == Addresses::all() => Vec::new(),
            Place::Blocks { outer, addresses } => match blocks(&outer, &addresses, most_except) {
                // Without any it would be everywhere.
                blocks if blocks.is_empty() => continue,
                blocks => blocks,
            },
            Place::Pods { namespaces, pods, .. } => {
                // One of the two must be there.
                let pods = pods.or_else(|| namespaces.is_none().then(LabelSelector::default));
                vec![Peer::Pods { namespaces, pods }]
            }
        };
        let same = rules.iter_mut().find(|(destination, rule)| {
            *destination == piece.destination && rule.ports == ports && !rule.to.is_empty() && !to.is_empty()
        });
        match same {
            Some((_, rule)) => {
                for peer in to {
                    if !rule.to.contains(&peer) {
                        rule.to.push(peer);
                    }
                }
            }
            None => rules.push((piece.destination, EgressRule { to, ports })),
        }
    }
    let mut told: Vec<EgressRule> = Vec::with_capacity(rules.len());
    for (_, rule) in rules {
        if !told.contains(&rule) {
            told.push(rule);
        }
    }
    told
}

/// Returns `addresses`, which lie in `outer`, as blocks: each outer prefix with what is left out of it, or what is left if that is
/// shorter.
fn blocks(outer: &[IpNet], addresses: &Addresses, most_except: usize) -> Vec<Peer> {
    let mut blocks = Vec::new();
    let mut sorted = IpNet::aggregate(&outer.to_vec());
    sorted.sort_unstable();
    for cidr in sorted {
        let whole = Addresses::of_nets([&cidr]);
        let missing = whole.minus(addresses);
        if missing == whole {
            continue;
        }
        let except: Vec<IpNet> = missing.nets().collect();
        let left = if except.is_empty() { Vec::new() } else { whole.minus(&missing).nets().collect() };
        if !except.is_empty() && (left.len() <= except.len() || except.len() > most_except) {
            blocks.extend(left.into_iter().map(|cidr| Peer::Block { cidr, except: Vec::new() }));
        } else {
            blocks.push(Peer::Block { cidr, except });
        }
    }
    blocks
}

/// Returns about how many bytes of JSON a peer takes, rather too many than too few.
fn size(peer: &Peer) -> usize {
    let net = |net: &IpNet| net.to_string().len() + 3;
    let selector = |selector: &LabelSelector| {
        let labels: usize =
            selector.match_labels.iter().map(|(key, value)| key.len() + value.len() + 6).sum();
        let expressions = selector.match_expressions.iter().map(|requirement| {
            let values = match &requirement.operator {
                Operator::In(values) | Operator::NotIn(values) => {
                    values.iter().map(|value| value.len() + 3).sum()
                }
                Operator::Exists | Operator::DoesNotExist => 0,
            };
            requirement.key.len() + values + 60
        });
        60 + labels + expressions.sum::<usize>()
    };
    match peer {
        Peer::Block { cidr, except } => 40 + net(cidr) + except.iter().map(net).sum::<usize>(),
        Peer::Pods { namespaces, pods } => {
            10 + [namespaces, pods].into_iter().flatten().map(selector).sum::<usize>()
        }
    }
}
