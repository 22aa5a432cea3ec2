//! Names for objects and labels.

/// The longest name of an object that is a DNS subdomain.
const MOST: usize = 253;
/// The longest value of a label.
const MOST_LABEL: usize = 63;
/// How many characters a hash has in a name.
const HASH: usize = 16;
/// Room for `-` and the number of an object.
const NUMBER: usize = 7;

/// The 64-bit FNV-1a hash of a name, in hexadecimal digits.
fn hash(name: &str) -> String {
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    format!("{hash:016x}")
}

/// Returns the name of a policy's object with this number, from 0.
///
/// Names of two policies never meet: a policy whose own name could be read as another's with a number or a hash behind it has its
/// hash in the name.
#[must_use]
pub fn object_name(policy: &str, number: usize) -> String {
    let ending = policy.rsplit_once('-').map_or("", |(_, ending)| ending);
    let like_number = !ending.is_empty() && ending.bytes().all(|byte| byte.is_ascii_digit());
    let like_hash = ending.len() == HASH && ending.bytes().all(|byte| byte.is_ascii_hexdigit());
    let room = MOST - "egress-".len() - NUMBER;
    let base = if like_number || like_hash || policy.len() > room {
        format!("egress-{}-{}", shortened(policy, room - 1 - HASH), hash(policy))
    } else {
        format!("egress-{policy}")
    };
    if number == 0 { base } else { format!("{base}-{}", number + 1) }
}

/// Returns a policy's name as the value of a label.
#[must_use]
pub fn label(policy: &str) -> String {
    if policy.len() <= MOST_LABEL {
        policy.to_owned()
    } else {
        format!("{}-{}", shortened(policy, MOST_LABEL - 1 - HASH), hash(policy))
    }
}

/// Returns the beginning of a name, without what must not stand before a `-`.
fn shortened(name: &str, most: usize) -> &str {
    let end = (0..=most.min(name.len())).rev().find(|end| name.is_char_boundary(*end)).unwrap_or(0);
    name[..end].trim_end_matches(['.', '-'])
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::policy::selector::value_fault;

    #[test]
    fn no_two_policies_share_a_name() {
        let long = "a".repeat(253);
        let mut policies: Vec<String> =
            ["a", "a-1", "a-2", "a-2-2", "a-22", "2", "a.2", "a--2"].map(String::from).into();
        policies.extend([long[..240].to_owned(), long[..252].to_owned(), long.clone()]);
        // One whose name is what another's becomes.
        let taken: Vec<String> = policies.iter().map(|policy| object_name(policy, 0)).collect();
        policies.extend(taken.iter().filter_map(|name| name.strip_prefix("egress-")).map(str::to_owned));
        policies.retain(|policy| policy.len() <= 253);
        policies.sort();
        policies.dedup();
        let mut seen = HashSet::new();
        for policy in &policies {
            for number in 0..30 {
                let name = object_name(policy, number);
                assert!(name.len() <= 253, "{name}");
                assert!(seen.insert(name.clone()), "{name} for {policy} is another's");
            }
        }
        assert_eq!(object_name("checkout", 0), "egress-checkout");
        assert_eq!(object_name("checkout", 1), "egress-checkout-2");
    }

    #[test]
    fn labels_are_label_values() {
        for policy in [
            "a".to_owned(),
            "a".repeat(63),
            "a".repeat(64),
            format!("{}.{}", "b".repeat(46), "c".repeat(100)),
        ] {
            let label = label(&policy);
            assert_eq!(value_fault(&label), None, "{label}");
            assert_eq!(label == policy, policy.len() <= 63);
        }
    }
}
