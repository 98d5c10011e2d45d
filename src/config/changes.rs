//! Which keys of a changed configuration a running daemon does not take over.

use super::{
    App, Config, Deliver, Encrypt, Endpoints, Events, Ingest, Messages, Metrics, Presence, Registry, Retry, Socket, Store,
};

impl Config {
    /// The keys whose values differ in `new` and are used only from the next start on, in the order of the file.
    ///
    /// Each field is named here: of a new key it has to be said whether a reload applies it.
    pub fn wants_restart(&self, new: &Config) -> Vec<String> {
        let Config {
            data_dir,
            ingest,
            sockets,
            metrics,
            apps,
            messages,
            events,
            store,
            encrypt,
            deliver,
            retry,
            registry,
            presence,
            endpoints,
        } = self;
        let mut keys = Vec::new();
        let mut look = |key: &str, same: bool| {
            if !same {
                keys.push(key.to_owned());
            }
        };
        look("data_dir", *data_dir == new.data_dir);

        let Ingest { socket, socket_mode, socket_group, line_limit, connections, memory_mb } = ingest;
        look("ingest.socket", *socket == new.ingest.socket);
        look("ingest.socket_mode", *socket_mode == new.ingest.socket_mode);
        look("ingest.socket_group", *socket_group == new.ingest.socket_group);
        look("ingest.line_limit", *line_limit == new.ingest.line_limit);
        look("ingest.connections", *connections == new.ingest.connections);
        look("ingest.memory_mb", *memory_mb == new.ingest.memory_mb);

        for (name, Socket { path, mode, group, apps }) in sockets {
            let same = new.sockets.get(name);
            let same = same.is_some_and(|new| (path, mode, group, apps) == (&new.path, &new.mode, &new.group, &new.apps));
            look(&format!("sockets.{name}"), same);
        }
        new.sockets.keys().filter(|name| !sockets.contains_key(*name)).for_each(|name| look(&format!("sockets.{name}"), false));

        let Metrics { listen } = metrics;
        look("metrics.listen", *listen == new.metrics.listen);

        // What an app has is taken over; an app that is new, or gone, is not.
        for (name, App { vapid_keys: _, subject: _, scopes: _ }) in apps {
            look(&format!("apps.{name}"), new.apps.contains_key(name));
        }
        new.apps.keys().filter(|name| !apps.contains_key(*name)).for_each(|name| look(&format!("apps.{name}"), false));

        let Messages { ttl_default: _, ttl_max: _, ttl0_patience, retention, at_max: _, max_pending, max_open } = messages;
        look("messages.ttl0_patience", *ttl0_patience == new.messages.ttl0_patience);
        look("messages.retention", *retention == new.messages.retention);
        look("messages.max_pending", *max_pending == new.messages.max_pending);
        look("messages.max_open", *max_open == new.messages.max_open);

        let Events { log, retention, max_mb } = events;
        look("events.log", *log == new.events.log);
        look("events.retention", *retention == new.events.retention);
        look("events.max_mb", *max_mb == new.events.max_mb);

        let Store { checkpoint_interval, cache_mb, min_free_percent, reserve_mb, fresh_mb } = store;
        look("store.checkpoint_interval", *checkpoint_interval == new.store.checkpoint_interval);
        look("store.cache_mb", *cache_mb == new.store.cache_mb);
        look("store.min_free_percent", *min_free_percent == new.store.min_free_percent);
        look("store.reserve_mb", *reserve_mb == new.store.reserve_mb);
        look("store.fresh_mb", *fresh_mb == new.store.fresh_mb);

        let Encrypt { threads, padding, warm_memory: _ } = encrypt;
        look("encrypt.threads", *threads == new.encrypt.threads);
        look("encrypt.padding", *padding == new.encrypt.padding);

        let Deliver { connections_per_origin, origins, timeout, drain, proxy, extra_roots } = deliver;
        look("deliver.connections_per_origin", *connections_per_origin == new.deliver.connections_per_origin);
        look("deliver.origins", *origins == new.deliver.origins);
        look("deliver.timeout", *timeout == new.deliver.timeout);
        look("deliver.drain", *drain == new.deliver.drain);
        look("deliver.proxy", *proxy == new.deliver.proxy);
        // The file's certificates are read again; another file is not.
        look("deliver.extra_roots", *extra_roots == new.deliver.extra_roots);

        let Retry { min, max } = retry;
        look("retry.min", *min == new.retry.min);
        look("retry.max", *max == new.retry.max);

        let Registry { browsers_per_account, undo } = registry;
        look("registry.browsers_per_account", *browsers_per_account == new.registry.browsers_per_account);
        look("registry.undo", *undo == new.registry.undo);

        let Presence { grace } = presence;
        look("presence.grace", *grace == new.presence.grace);

        let Endpoints { policy: _, allow_hosts, allow_networks } = endpoints;
        look("endpoints.allow_hosts", *allow_hosts == new.endpoints.allow_hosts);
        look("endpoints.allow_networks", *allow_networks == new.endpoints.allow_networks);
        keys
    }
}
