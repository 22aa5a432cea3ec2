//! Published address ranges: which addresses a service of a provider has.
//!
//! A [`Table`] holds the rows of one provider, [`Ranges`] the tables of all of them and the services that a platform team defines
//! ([`Custom`]). Where the data comes from is told in [`crate::ranges`].
//!
//! What a destination means:
//!
//! 1. Names of providers, services and regions are the same in upper and lower case.
//! 2. `awsService` is first looked for among the custom services, then among AWS'; so is a service of provider `aws`. What the platform
//!    team has defined does not change its meaning when AWS publishes that name one day. Provider `custom` has the custom ones only.
//! 3. Several services are all of them, and several regions are all of them: the addresses of each service in each region. None means
//!    all.
//! 4. A region is named by its name, by a network border group inside it, or by what it is a part of. A border group is only itself: the
//!    region it lies in has its addresses too, not the other way round.
//! 5. Addresses of region `GLOBAL` belong to no region. They are meant when `GLOBAL` is named or when no region is;
//!    [`Found::left_out_global`] counts those that `regions` leaves out.
//! 6. `Service.Region` is the part of a service in that region where no service has that name by itself (Azure writes it so).
//! 7. What means nothing at all is [`Missing`], never an empty list. A service or region that gives nothing beside others that do is in
//!    [`Found::nothing_of`].

mod collapse;
pub mod custom;
pub mod table;

use std::{collections::BTreeMap, fmt, sync::Arc};

use ipnet::IpNet;

pub use self::{
    collapse::collapsed,
    custom::Custom,
    table::{Builder, Count, GLOBAL, Revision, Row, Table},
};
use crate::policy::{
    document::{nearest, shown},
    model::{PortSpec, Unresolved},
};

/// The name of the provider whose services are the custom ones.
pub const CUSTOM: &str = "custom";

/// The name of the provider that `awsService` speaks of.
pub const AWS: &str = "aws";

/// The published ranges of all providers. Copies share what they hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ranges {
    /// By the lower case of the name.
    providers: Arc<BTreeMap<String, Arc<Table>>>,
    custom: Arc<Custom>,
}

/// What a destination stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The fewest, IPv4 first, each family in order.
    pub cidrs: Arc<[IpNet]>,
    /// Patterns, sorted.
    pub domains: Vec<String>,
    /// The only ports that are meant; empty if the ranges say nothing of ports. Sorted. Only custom services have any.
    pub ports: Vec<PortSpec>,
    /// Rows of region GLOBAL that `regions` leaves out.
    pub left_out_global: usize,
    /// Named services and regions that give nothing, beside others that do.
    pub nothing_of: Vec<String>,
}

/// Why a destination stands for nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Missing {
    /// There is no data of the provider at all.
    #[error("there are no published ranges of {} here", shown(.0))]
    Provider(String),
    /// The provider publishes nothing under that name.
    #[error("{} publishes no service {}{}", shown(.provider), shown(.service), Meant(.near.as_deref()))]
    Service {
        /// As written.
        provider: String,
        /// As written.
        service: String,
        /// A name it may have been meant to be.
        near: Option<String>,
    },
    /// The provider publishes nothing for such a region.
    #[error("{} publishes no region {}{}", shown(.provider), shown(.region), Meant(.near.as_deref()))]
    Region {
        /// As written.
        provider: String,
        /// As written.
        region: String,
        /// A name it may have been meant to be.
        near: Option<String>,
    },
    /// There is each service and each region, but nothing of the ones in the others.
    #[error("{} publishes no address of {}{}", shown(.provider), List(.services, "any service"), In(.regions))]
    Empty {
        /// As written.
        provider: String,
        /// As written.
        services: Vec<String>,
        /// As written.
        regions: Vec<String>,
    },
    /// Custom services with different ports in one destination.
    #[error("{} and {} have different ports; give each a destination of its own", shown(.first), shown(.second))]
    Ports {
        /// One service.
        first: String,
        /// Another.
        second: String,
    },
    /// A domain has no published ranges: DNS tells its addresses.
    #[error("domains have no published ranges")]
    Domains,
}

struct Meant<'a>(Option<&'a str>);

impl fmt::Display for Meant<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(near) => write!(f, "; did you mean {near}?"),
            None => Ok(()),
        }
    }
}

struct List<'a>(&'a [String], &'static str);

impl fmt::Display for List<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        /// A sentence should stay one line.
        const LISTED: usize = 8;
        let [first, rest @ ..] = self.0 else { return f.write_str(self.1) };
        f.write_str(&shown(first))?;
        for (at, name) in rest.iter().enumerate().take(LISTED - 1) {
            let word = if at + 1 == rest.len() { " or " } else { ", " };
            write!(f, "{word}{}", shown(name))?;
        }
        match self.0.len().checked_sub(LISTED) {
            None | Some(0) => Ok(()),
            Some(more) => write!(f, " or {more} more"),
        }
    }
}

struct In<'a>(&'a [String]);

impl fmt::Display for In<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() { Ok(()) } else { write!(f, " in {}", List(self.0, "")) }
    }
}

impl Ranges {
    /// Sets the ranges of a provider.
    pub fn set_provider(&mut self, name: &str, table: Arc<Table>) {
        Arc::make_mut(&mut self.providers).insert(name.to_ascii_lowercase(), table);
    }

    /// Forgets the ranges of a provider.
    pub fn remove_provider(&mut self, name: &str) {
        let name = name.to_ascii_lowercase();
        if self.providers.contains_key(&name) {
            Arc::make_mut(&mut self.providers).remove(&name);
        }
    }

    /// Sets the custom services, all of them.
    pub fn set_custom(&mut self, custom: Custom) {
        self.custom = Arc::new(custom);
    }

    /// Returns the providers there are ranges of, in order.
    pub fn providers(&self) -> impl ExactSizeIterator<Item = (&str, &Arc<Table>)> {
        self.providers.iter().map(|(name, table)| (name.as_str(), table))
    }

    /// Returns the ranges of a provider.
    #[must_use]
    pub fn provider(&self, name: &str) -> Option<&Arc<Table>> {
        self.providers.get(&name.to_ascii_lowercase())
    }

    /// Returns the custom services.
    #[must_use]
    pub fn custom(&self) -> &Custom {
        &self.custom
    }

    /// Returns what a destination stands for.
    ///
    /// # Errors
    ///
    /// When it stands for nothing, and why.
    pub fn resolve(&self, what: &Unresolved) -> Result<Found, Missing> {
        match what {
            Unresolved::AwsService { service, regions } => {
                self.cloud(AWS, std::slice::from_ref(service), regions)
            }
            Unresolved::Cloud { provider, services, regions } => self.cloud(provider, services, regions),
            Unresolved::Domains(_) => Err(Missing::Domains),
        }
    }

    fn cloud(&self, provider: &str, services: &[String], regions: &[String]) -> Result<Found, Missing> {
        let only_custom = provider.eq_ignore_ascii_case(CUSTOM);
        let (mut own, mut published) = (Vec::new(), Vec::new());
        for service in services {
            let custom = only_custom || provider.eq_ignore_ascii_case(AWS);
            match self.custom.get(service).filter(|_| custom) {
                Some(service) => own.push(service),
                None if only_custom => {
                    let names = self.custom.services().map(|service| service.name.as_str());
                    let near = nearest(service, names).map(str::to_owned);
                    return Err(Missing::Service { provider: CUSTOM.into(), service: service.clone(), near });
                }
                None => published.push(service.clone()),
            }
        }
        if only_custom && services.is_empty() {
            own.extend(self.custom.services());
        }
        if own.is_empty() {
            if only_custom {
                return Err(Missing::Provider(CUSTOM.into()));
            }
            return self.published(provider, services, regions);
        }
        // What a platform team defines lies in no region.
        if let Some(region) = regions.iter().find(|region| !region.eq_ignore_ascii_case(GLOBAL))
            && published.is_empty()
        {
            return Err(Missing::Region { provider: CUSTOM.into(), region: region.clone(), near: None });
        }
        let mut found = match published.is_empty() {
            true => Found::default(),
            false => self.published(provider, &published, regions)?,
        };
        let no_ports = Vec::new();
        let (first, ports) = match own.as_slice() {
            [first, ..] if published.is_empty() => (&first.name, &first.ports),
            [first, ..] => (published.first().unwrap_or(&first.name), &no_ports),
            [] => return Err(Missing::Provider(CUSTOM.into())),
        };
        if let Some(other) = own.iter().find(|service| service.ports != *ports) {
            return Err(Missing::Ports { first: first.clone(), second: other.name.clone() });
        }
        found.ports.clone_from(ports);
        let mut cidrs = found.cidrs.to_vec();
        for service in &own {
            cidrs.extend(&*service.cidrs);
            found.domains.extend(service.domains.iter().cloned());
        }
        found.cidrs = collapsed(&cidrs).into();
        found.domains.sort();
        found.domains.dedup();
        Ok(found)
    }

    fn published(&self, provider: &str, services: &[String], regions: &[String]) -> Result<Found, Missing> {
        let table = self.provider(provider).ok_or_else(|| Missing::Provider(provider.to_owned()))?;
        let mut named = Vec::with_capacity(services.len());
        for service in services {
            named.push(table.service(service).ok_or_else(|| Missing::Service {
                provider: provider.to_owned(),
                service: service.clone(),
                near: nearest(service, table.services()).map(str::to_owned),
            })?);
        }
        let mut areas = Vec::with_capacity(regions.len());
        for region in regions {
            areas.push(table.region(region).ok_or_else(|| Missing::Region {
                provider: provider.to_owned(),
                region: region.clone(),
                near: nearest(region, table.regions()).map(str::to_owned),
            })?);
        }
        let selected = table.select(&named, &areas);
        if selected.cidrs.is_empty() && selected.domains.is_empty() {
            return Err(Missing::Empty {
                provider: provider.to_owned(),
                services: services.to_vec(),
                regions: regions.to_vec(),
            });
        }
        let silent = services.iter().zip(selected.services).chain(regions.iter().zip(selected.regions));
        Ok(Found {
            cidrs: selected.cidrs.into(),
            domains: selected.domains,
            ports: Vec::new(),
            left_out_global: selected.left_out_global,
            nothing_of: silent.filter(|(_, gave)| !gave).map(|(name, _)| name.clone()).collect(),
        })
    }
}

impl Default for Found {
    fn default() -> Self {
        Self {
            cidrs: Arc::from([]),
            domains: Vec::new(),
            ports: Vec::new(),
            left_out_global: 0,
            nothing_of: Vec::new(),
        }
    }
}

impl Found {
    /// Returns the IPv4 networks.
    #[must_use]
    pub fn v4(&self) -> &[IpNet] {
        &self.cidrs[..self.cidrs.partition_point(|net| matches!(net, IpNet::V4(_)))]
    }

    /// Returns the IPv6 networks.
    #[must_use]
    pub fn v6(&self) -> &[IpNet] {
        &self.cidrs[self.v4().len()..]
    }

    /// Returns how much it opens.
    #[must_use]
    pub fn width(&self) -> Width {
        Width::of(&self.cidrs)
    }
}

/// How much networks open. Written as `406 CIDRs, 21.5 million IPv4 addresses`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Width {
    /// IPv4 addresses.
    pub addresses: u64,
    /// Networks of both families.
    pub cidrs: usize,
}

impl Width {
    /// Measures networks that have no address in common, as those of a [`Found`] are.
    #[must_use]
    pub fn of(cidrs: &[IpNet]) -> Self {
        let addresses = cidrs
            .iter()
            .map(|net| match net {
                IpNet::V4(net) => 1_u64 << (32 - u32::from(net.prefix_len())),
                IpNet::V6(_) => 0,
            })
            .sum();
        Self { addresses, cidrs: cidrs.len() }
    }
}

impl fmt::Display for Width {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.cidrs {
            1 => f.write_str("1 CIDR, ")?,
            count => write!(f, "{count} CIDRs, ")?,
        }
        let tenths = |unit: u64| {
            let tenths = (u128::from(self.addresses) * 10 + u128::from(unit) / 2) / u128::from(unit);
            format!("{}.{}", tenths / 10, tenths % 10)
        };
        match self.addresses {
            0 => f.write_str("no IPv4 address"),
            1 => f.write_str("1 IPv4 address"),
            count @ ..10_000 => write!(f, "{count} IPv4 addresses"),
            10_000..1_000_000 => write!(f, "{} thousand IPv4 addresses", (self.addresses + 500) / 1000),
            1_000_000.. => write!(f, "{} million IPv4 addresses", tenths(1_000_000)),
        }
    }
}

#[cfg(test)]
mod tests;
