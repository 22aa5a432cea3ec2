//! Domain destinations as the configuration of an Envoy that all egress goes through.
//!
//! Each TCP port that some destination names has a listener. Where TLS is expected, the name in the client's hello chooses the chain, and
//! without a chain the connection is closed; nothing is decrypted. Where HTTP is expected, the Host (`:authority`) chooses, and anything
//! else is answered with 403. Upstream addresses are looked up from that very name, never taken from the client.
//!
//! `*.x` matches names below `x` and never `x` itself, both as a server name and as a virtual host.

use serde_json::{Value, json};

use super::{Destination, by_port, is_plain};

/// What is added to a port to get the one Envoy listens on, so that it needs no privilege.
pub const OFFSET: u16 = 10_000;

/// A port so high that there is no port for Envoy to listen on instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("port {0} has no port {OFFSET} above it to listen on")]
pub struct TooHigh(pub u16);

/// Returns Envoy's bootstrap configuration.
///
/// # Errors
///
/// When a port is too high.
pub fn bootstrap(destinations: &[Destination]) -> Result<Value, TooHigh> {
    let mut listeners = Vec::new();
    for (port, domains) in by_port(destinations) {
        let listen = port.checked_add(OFFSET).ok_or(TooHigh(port))?;
        listeners.push(if is_plain(port) {
            http(port, listen, &domains)
        } else {
            tls(port, listen, &domains)
        });
    }
    Ok(json!({
        // On loopback only: it can stop the proxy.
        "admin": {"address": socket("127.0.0.1", 9901)},
        "static_resources": {
            "listeners": listeners,
            "clusters": [{
                "name": "by_name",
                "lb_policy": "CLUSTER_PROVIDED",
                "connect_timeout": "5s",
                "cluster_type": {
                    "name": "envoy.clusters.dynamic_forward_proxy",
                    "typed_config": {
                        "@type": "type.googleapis.com/envoy.extensions.clusters.dynamic_forward_proxy.v3.ClusterConfig",
                        "dns_cache_config": dns_cache(),
                    },
                },
            }],
        },
    }))
}

fn socket(address: &str, port: u16) -> Value {
    json!({"socket_address": {"address": address, "port_value": port}})
}

/// The same for all that use it, as Envoy demands.
fn dns_cache() -> Value {
    json!({"name": "by_name", "dns_lookup_family": "ALL", "max_hosts": 10_000})
}

fn access_log(format: &str) -> Value {
    json!([{
        "name": "envoy.access_loggers.stdout",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.access_loggers.stream.v3.StdoutAccessLog",
            "log_format": {"text_format_source": {"inline_string": format!("{format}\n")}},
        },
    }])
}

/// A listener that reads the server name of TLS and passes on what it has a chain for.
fn tls(port: u16, listen: u16, domains: &[String]) -> Value {
    let forward = json!({
        "name": "envoy.filters.network.sni_dynamic_forward_proxy",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.sni_dynamic_forward_proxy.v3.FilterConfig",
            "port_value": port,
            "dns_cache_config": dns_cache(),
        },
    });
    let proxy = json!({
        "name": "envoy.filters.network.tcp_proxy",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
            "stat_prefix": format!("tls_{port}"),
            "cluster": "by_name",
            "access_log": access_log("%START_TIME% %DOWNSTREAM_REMOTE_ADDRESS% sni=%REQUESTED_SERVER_NAME% %UPSTREAM_HOST% %RESPONSE_FLAGS%"),
        },
    });
    json!({
        "name": format!("tls_{port}"),
        "address": socket("0.0.0.0", listen),
        "listener_filters": [{
            "name": "envoy.filters.listener.tls_inspector",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector",
            },
        }],
        // What has no name, or another one, has no chain: it is closed.
        "filter_chains": [{
            "filter_chain_match": {"transport_protocol": "tls", "server_names": domains},
            "filters": [forward, proxy],
        }],
        "access_log": access_log("%START_TIME% %DOWNSTREAM_REMOTE_ADDRESS% sni=%REQUESTED_SERVER_NAME% %RESPONSE_FLAGS%"),
    })
}

/// A listener that reads the Host of HTTP and passes on what it has a virtual host for.
fn http(port: u16, listen: u16, domains: &[String]) -> Value {
    // The usual port is left out of a Host; any other must stand there, and is where the request goes.
    let hosts = domains.iter().flat_map(|domain| {
        let named = format!("{domain}:{port}");
        if port == 80 { vec![domain.clone(), named] } else { vec![named] }
    });
    let filters = json!([
        {
            "name": "envoy.filters.http.dynamic_forward_proxy",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.http.dynamic_forward_proxy.v3.FilterConfig",
                "dns_cache_config": dns_cache(),
            },
        },
        {
            "name": "envoy.filters.http.router",
            "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"},
        },
    ]);
    json!({
        "name": format!("http_{port}"),
        "address": socket("0.0.0.0", listen),
        "filter_chains": [{"filters": [{
            "name": "envoy.filters.network.http_connection_manager",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
                "stat_prefix": format!("http_{port}"),
                "access_log": access_log("%START_TIME% %DOWNSTREAM_REMOTE_ADDRESS% host=%REQ(:AUTHORITY)% %RESPONSE_CODE% %UPSTREAM_HOST% %RESPONSE_FLAGS%"),
                "route_config": {
                    "virtual_hosts": [
                        {
                            "name": "allowed",
                            "domains": hosts.collect::<Vec<String>>(),
                            "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "by_name"}}],
                        },
                        {
                            "name": "denied",
                            "domains": ["*"],
                            "routes": [{
                                "match": {"prefix": "/"},
                                "direct_response": {"status": 403, "body": {"inline_string": "egress denied\n"}},
                            }],
                        },
                    ],
                },
                "http_filters": filters,
            },
        }]}],
    })
}
