//! Domain patterns.

use std::{
    collections::HashSet,
    net::{IpAddr, SocketAddr},
};

use idna::uts46::{AsciiDenyList, DnsLength, Hyphens, Uts46};

use super::context::{Context, Slot, shown};

/// Reads the pattern in `slot`.
pub(super) fn read(cx: &mut Context<'_>, slot: &Slot<'_>) -> Option<String> {
    let text = cx.string(slot)?;
    match parse(text) {
        Ok(domain) => {
            if !text.is_ascii() {
                cx.warning(slot, format!("Domain {} is used as {domain}", shown(text))).hint =
                    Some("DNS asks for that form".into());
            }
            if is_rented_out(&domain) {
                let message = format!("{domain} names domains of everybody who rents one there");
                cx.warning(slot, message).hint = Some("name your own domains below it".into());
            }
            Some(domain)
        }
        Err((what, hint)) => {
            cx.error(slot, format!("Invalid domain: {} {what}", shown(text))).hint = hint;
            None
        }
    }
}

/// Reads a list of patterns that must not be empty.
pub(super) fn read_list(cx: &mut Context<'_>, slot: &Slot<'_>) -> Option<Vec<String>> {
    let items = cx.filled_list(slot, "name at least one domain")?;
    let mut seen = HashSet::new();
    let mut list = Vec::with_capacity(items.len());
    for item in items {
        let Some(domain) = read(cx, &item) else { continue };
        if seen.insert(domain.clone()) {
            list.push(domain);
        } else {
            cx.warning(&item, format!("Duplicate domain: {domain}"));
        }
    }
    Some(list)
}

pub(crate) type Fault = (&'static str, Option<String>);

/// Returns the pattern in lower case, in the form DNS asks for, and without a final dot.
///
/// The grammar is that of network-policy-api: `*.` in front stands for one or more labels, never for none, so that
/// `*.example.com` is not `example.com`.
pub(crate) fn parse(text: &str) -> Result<String, Fault> {
    // What is proposed is shorter than the text, so that this ends.
    let meant = |candidate: &str| match candidate.len() < text.len() {
        true => parse(candidate).map_or(None, |domain| Some(format!("did you mean {domain}?"))),
        false => None,
    };
    if text.is_empty() {
        return Err(("is empty", Some("write a name such as api.example.com or *.example.com".into())));
    }
    if text.len() > 1024 {
        return Err(("is longer than 253 characters", None));
    }
    if let Some((_, rest)) = text.split_once("://") {
        let host = rest.split(['/', '?', '#']).next().unwrap_or(rest);
        let host = host.split(':').next().unwrap_or(host);
        return Err(("has a scheme", meant(host)));
    }
    let is_address = text.parse::<IpAddr>().is_ok() || text.parse::<SocketAddr>().is_ok();
    if is_address || super::cidrs::looks_like(text) {
        return Err(("is an address", Some("use cidr for it".into())));
    }
    if text.contains(char::is_whitespace) {
        return Err(("has a space in it", meant(text.trim())));
    }
    if let Some((host, _)) = text.split_once(['/', '?', '#']) {
        return Err(("has a path", meant(host.split(':').next().unwrap_or(host))));
    }
    if let Some((host, _)) = text.split_once(':') {
        let hint = meant(host).map(|hint| format!("{hint} The port belongs into ports"));
        return Err(("has a port", hint));
    }
    let domain = ascii(text)?;
    if domain.len() > 253 {
        return Err(("is longer than 253 characters", None));
    }
    if domain == "*" {
        return Err((
            "names every domain",
            Some("use entity world for every address outside the cluster".into()),
        ));
    }
    let (wildcard, rest) = match domain.strip_prefix("*.") {
        Some(rest) => (true, rest),
        None => (false, domain.as_str()),
    };
    if rest.contains('*') {
        return Err((
            "has a wildcard in the wrong place",
            Some("a wildcard is the whole first label, such as in *.example.com".into()),
        ));
    }
    for label in rest.split('.') {
        if label.is_empty() {
            return Err(("has an empty label", meant(domain.trim_matches('.'))));
        }
        if label.len() > 63 {
            return Err(("has a label longer than 63 characters", None));
        }
        if !label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_') {
            return Err(("has a character that is not a letter, a digit, '-' or '_'", None));
        }
        if label.starts_with('-') || label.ends_with('-') {
            return Err(("has a label that begins or ends with '-'", None));
        }
    }
    if !rest.contains('.') {
        return Err(if wildcard {
            (
                "is a public suffix: it names domains of everybody",
                Some(format!("did you mean *.example.{rest}?")),
            )
        } else {
            ("has only one label", Some("use service for a name inside the cluster".into()))
        });
    }
    if wildcard && public_suffix(rest) == Some(psl::Type::Icann) {
        return Err((
            "is a public suffix: it names domains of everybody",
            Some(format!("did you mean *.example.{rest}?")),
        ));
    }
    if rest.rsplit('.').next().is_some_and(|last| last.bytes().all(|b| b.is_ascii_digit())) {
        return Err(("ends in a number, as no domain does", None));
    }
    Ok(domain)
}

/// Returns the pattern with each label in the form DNS asks for (UTS #46, not transitional), and without a final dot.
fn ascii(text: &str) -> Result<String, Fault> {
    let (star, name) = match text.strip_prefix("*.") {
        Some(name) => ("*.", name),
        None => ("", text),
    };
    let encoded =
        name.split('.').any(|label| label.get(..4).is_some_and(|label| label.eq_ignore_ascii_case("xn--")));
    let name = if name.is_ascii() && !encoded {
        name.to_ascii_lowercase()
    } else {
        // The grammar that follows knows which ASCII may stand in a label.
        let converted =
            Uts46::new().to_ascii(name.as_bytes(), AsciiDenyList::EMPTY, Hyphens::Check, DnsLength::Ignore);
        converted.map(std::borrow::Cow::into_owned).map_err(|_: idna::Errors| match name.is_ascii() {
            true => ("has a label with xn-- that stands for nothing", None),
            false => ("has characters that no internationalized domain has", None),
        })?
    };
    let domain = format!("{star}{name}");
    Ok(domain.strip_suffix('.').map(str::to_owned).unwrap_or(domain))
}

/// Returns who runs the public suffix that `name` is: a registry, or somebody who rents out names below a domain of theirs.
/// Names under top-level domains that the list does not know, such as `local`, are none.
fn public_suffix(name: &str) -> Option<psl::Type> {
    psl::suffix(name.as_bytes()).filter(|suffix| suffix.as_bytes().len() == name.len())?.typ()
}

/// Tells whether a pattern stands for the names below one of those domains.
fn is_rented_out(pattern: &str) -> bool {
    pattern.strip_prefix("*.").is_some_and(|rest| public_suffix(rest) == Some(psl::Type::Private))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        let long = format!("{}.com", vec!["a".repeat(61); 4].join("."));
        for (text, expected) in [
            ("api.stripe.com", "api.stripe.com"),
            ("API.Stripe.COM.", "api.stripe.com"),
            ("*.stripe.com", "*.stripe.com"),
            ("_dmarc.example.com", "_dmarc.example.com"),
            ("xn--bcher-kva.example", "xn--bcher-kva.example"),
            ("XN--BCHER-KVA.example", "xn--bcher-kva.example"),
            ("bücher.example", "xn--bcher-kva.example"),
            ("*.BÜCHER.example.", "*.xn--bcher-kva.example"),
            ("_dmarc.bücher.example", "_dmarc.xn--bcher-kva.example"),
            ("faß.example", "xn--fa-hia.example"),
            ("例え。テスト", "xn--r8jz45g.xn--zckzah"),
            ("*.foo.local", "*.foo.local"),
            ("*.github.io", "*.github.io"),
            ("co.uk", "co.uk"),
            (long.as_str(), long.as_str()),
        ] {
            assert_eq!(parse(text).expect(text), expected);
        }
        let label = format!("{}.com", "a".repeat(64));
        let too_long = vec!["a".repeat(49); 6].join(".");
        for (text, what, hint) in [
            ("", "is empty", Some("write a name such as api.example.com or *.example.com")),
            ("https://a.com:8443/x", "has a scheme", Some("did you mean a.com?")),
            ("https://", "has a scheme", None),
            ("a.com/x", "has a path", Some("did you mean a.com?")),
            ("a.com:443/x", "has a path", Some("did you mean a.com?")),
            ("a.com:443", "has a port", Some("did you mean a.com? The port belongs into ports")),
            (" a.com", "has a space in it", Some("did you mean a.com?")),
            ("10.0.0.1", "is an address", Some("use cidr for it")),
            ("10.0.0.0/8", "is an address", Some("use cidr for it")),
            ("10.0.0.1:80", "is an address", Some("use cidr for it")),
            ("fd00::1", "is an address", Some("use cidr for it")),
            ("xn--a.example", "has a label with xn-- that stands for nothing", None),
            ("a\u{200d}b.example", "has characters that no internationalized domain has", None),
            ("-ü.example", "has characters that no internationalized domain has", None),
            ("ü!.example", "has a character that is not a letter, a digit, '-' or '_'", None),
            (
                "*ü.example.com",
                "has a wildcard in the wrong place",
                Some("a wildcard is the whole first label, such as in *.example.com"),
            ),
            ("ü..example", "has an empty label", None),
            (
                "*.co.uk",
                "is a public suffix: it names domains of everybody",
                Some("did you mean *.example.co.uk?"),
            ),
            (
                "*.公司.cn",
                "is a public suffix: it names domains of everybody",
                Some("did you mean *.example.xn--55qx5d.cn?"),
            ),
            ("*", "names every domain", Some("use entity world for every address outside the cluster")),
            (
                "*.com",
                "is a public suffix: it names domains of everybody",
                Some("did you mean *.example.com?"),
            ),
            (
                "a.*.com",
                "has a wildcard in the wrong place",
                Some("a wildcard is the whole first label, such as in *.example.com"),
            ),
            (
                "*a.b.com",
                "has a wildcard in the wrong place",
                Some("a wildcard is the whole first label, such as in *.example.com"),
            ),
            ("a..com", "has an empty label", None),
            (".a.com", "has an empty label", Some("did you mean a.com?")),
            ("localhost", "has only one label", Some("use service for a name inside the cluster")),
            ("-a.com", "has a label that begins or ends with '-'", None),
            ("a!.com", "has a character that is not a letter, a digit, '-' or '_'", None),
            ("a.300", "ends in a number, as no domain does", None),
            (label.as_str(), "has a label longer than 63 characters", None),
            (too_long.as_str(), "is longer than 253 characters", None),
        ] {
            let (said, hinted) = parse(text).expect_err(text);
            assert_eq!((said, hinted.as_deref()), (what, hint), "{text}");
        }
    }
}
