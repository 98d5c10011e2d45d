use std::collections::BTreeSet;
use std::io::Write;
use std::path::Path;

use ::config::{File, FileFormat, Source, ValueKind};

use super::read::Read;
use super::*;
use crate::message::Ending;

const SHIPPED: &str = include_str!("../../config/fanfare.toml");
const APP: &str = "[apps.default]\nvapid_keys = [\"/k\"]\nsubject = \"mailto:push@fanfare.dev\"\n";

fn load(text: &str, env: &[(&str, &str)]) -> Result<Config, Problems> {
    let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
    file.write_all(text.as_bytes()).expect("written");
    Config::load(Some(file.path()), env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())))
}

fn good(text: &str, env: &[(&str, &str)]) -> Config {
    load(&format!("{text}\n{APP}"), env).unwrap_or_else(|problems| panic!("{text}: {problems}"))
}

fn problems(text: &str, env: &[(&str, &str)]) -> Vec<Problem> {
    match load(text, env) {
        Err(Problems::Wrong(problems)) => problems,
        other => panic!("{text}: {other:?}"),
    }
}

fn keys(text: &str, env: &[(&str, &str)]) -> Vec<String> {
    problems(text, env).into_iter().map(|problem| problem.key).collect()
}

/// The shipped file with every default uncommented.
fn uncommented() -> String {
    let uncomment = |line: &str| match line.strip_prefix('#') {
        Some(rest) if !rest.starts_with(' ') && !rest.is_empty() => format!("{rest}\n"),
        _ => format!("{line}\n"),
    };
    SHIPPED.lines().map(uncomment).collect()
}

#[test]
fn the_shipped_file_tells_the_defaults() {
    let shipped = load(SHIPPED, &[]).unwrap_or_else(|problems| panic!("{problems}"));
    let spelled_out = load(&uncommented(), &[]).unwrap_or_else(|problems| panic!("{problems}"));
    let app = "[apps.default]\nvapid_keys = [\"/etc/fanfare/vapid.pem\"]\nsubject = \"mailto:webmaster@example.com\"\n";
    let built_in = load(app, &[]).unwrap_or_else(|problems| panic!("{problems}"));
    assert_eq!(format!("{shipped:?}"), format!("{built_in:?}"));
    assert_eq!(format!("{spelled_out:?}"), format!("{built_in:?}"));
    assert_eq!(shipped.warnings().len(), 1, "only the example's address: {:?}", shipped.warnings());
}

#[test]
fn the_shipped_file_names_every_key() {
    let tree = |text: &str| File::from_str(text, FileFormat::Toml).collect().expect("TOML");
    let mut read = Read::default();
    read.config(tree(&format!("{SHIPPED}\n[sockets.shop]\n")));
    let known: BTreeSet<String> = read.known.into_iter().filter(|key| !key.starts_with("sockets.shop.")).collect();
    let mut named = BTreeSet::new();
    for (name, value) in tree(&uncommented()) {
        match value.kind {
            ValueKind::Table(table) if name == "apps" => {
                let app = table["default"].clone().into_table().expect("a table");
                named.extend(app.into_keys().map(|key| format!("apps.default.{key}")));
            }
            ValueKind::Table(table) => named.extend(table.into_keys().map(|key| format!("{name}.{key}"))),
            _ => {
                named.insert(name);
            }
        }
    }
    assert_eq!(named, known);
    for key in ["path", "mode", "group", "apps"] {
        assert!(SHIPPED.contains(&format!("#   {key} = ")), "sockets.shop.{key}");
    }
}

#[test]
fn the_defaults_of_the_design() {
    let config = good("", &[]);
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
    } = config;
    assert_eq!(data_dir, Path::new("/var/lib/fanfare"));
    assert_eq!(
        (ingest.socket.to_str(), ingest.socket_mode, ingest.socket_group),
        (Some("/run/fanfare/fanfare.sock"), 0o660, None)
    );
    assert_eq!((ingest.line_limit, ingest.connections, ingest.memory_mb), (1_048_576, 4_096, 64));
    assert!(sockets.is_empty());
    assert_eq!(metrics.listen, Some("127.0.0.1:9464".parse().expect("an address")));
    assert_eq!((apps.len(), apps["default"].subject.as_str()), (1, "mailto:push@fanfare.dev"));
    assert_eq!((messages.ttl_default, messages.ttl_max, messages.max_pending), (2_419_200, 2_419_200, 20_000_000));
    assert_eq!(messages.max_open, 20_000);
    let seconds = |seconds: f64| Duration::from_secs_f64(seconds);
    assert_eq!(
        (messages.ttl0_patience, messages.retention, messages.at_max),
        (seconds(5.0), seconds(604_800.0), seconds(7_776_000.0))
    );
    assert_eq!((events.log.len(), events.retention, events.max_mb), (9, seconds(604_800.0), 2_048));
    assert!(!events.log.contains(&EventType::Ended(Ending::Accepted)));
    assert_eq!((store.checkpoint_interval, store.cache_mb, store.min_free_percent), (seconds(0.25), 256, 5.0));
    assert_eq!((store.reserve_mb, store.fresh_mb), (64, 32));
    assert_eq!((encrypt.threads, encrypt.padding, encrypt.warm_memory), (0, 0, 64));
    assert_eq!(
        (deliver.connections_per_origin, deliver.origins, deliver.timeout, deliver.drain),
        (4, 1_024, seconds(30.0), seconds(10.0))
    );
    assert_eq!((deliver.proxy, deliver.extra_roots), (None, None));
    assert_eq!((retry.min, retry.max), (seconds(1.0), seconds(3_600.0)));
    assert_eq!((registry.browsers_per_account, registry.undo), (10_000, seconds(604_800.0)));
    assert_eq!(presence.grace, seconds(120.0));
    assert_eq!((endpoints.policy, endpoints.allow_hosts.len(), endpoints.allow_networks.len()), (Policy::Known, 0, 0));
}

#[test]
fn the_environment_goes_before_the_file() {
    let config = good(
        "[deliver]\ntimeout = 5\n[apps.My-Shop]\nvapid_keys = [\"/a\"]\nsubject = \"https://shop.dev/contact\"",
        &[
            ("FANFARE__DELIVER__TIMEOUT", "7.5"),
            ("FANFARE__INGEST__SOCKET_MODE", "0600"),
            ("FANFARE__INGEST__CONNECTIONS", "12"),
            ("FANFARE__ENDPOINTS__ALLOW_HOSTS", "push.example.com:8443, [::1]"),
            ("FANFARE__ENDPOINTS__ALLOW_NETWORKS", ""),
            ("FANFARE__EVENTS__LOG", "gone,accepted"),
            ("FANFARE__METRICS__LISTEN", ""),
            ("FANFARE__APPS__MY_SHOP__VAPID_KEYS", "/b,$CREDENTIALS_DIRECTORY/vapid"),
            ("FANFARE__APPS__OTHER__VAPID_KEYS", "/c"),
            ("FANFARE__APPS__OTHER__SUBJECT", "mailto:a@b.dev"),
            ("CREDENTIALS_DIRECTORY", "/run/credentials/fanfare"),
            ("FANFARE_LOG", "debug"),
            ("DELIVER__TIMEOUT", "9"),
            ("PATH", "/bin"),
        ],
    );
    assert_eq!(
        (config.deliver.timeout, config.ingest.socket_mode, config.ingest.connections),
        (Duration::from_millis(7_500), 0o600, 12)
    );
    let hosts: Vec<String> = config.endpoints.allow_hosts.iter().map(ToString::to_string).collect();
    assert_eq!(hosts, ["push.example.com:8443", "[::1]"]);
    assert!(config.endpoints.allow_networks.is_empty() && config.metrics.listen.is_none());
    assert_eq!(config.events.log.len(), 2);
    assert_eq!(config.apps.keys().collect::<Vec<_>>(), ["My-Shop", "default", "other"]);
    assert_eq!(config.apps["My-Shop"].vapid_keys, [Path::new("/b"), Path::new("/run/credentials/fanfare/vapid")]);
    let mode = good("", &[("FANFARE__INGEST__SOCKET_MODE", "0o640")]).ingest.socket_mode;
    assert_eq!(mode, 0o640);
}

#[test]
fn the_environment_alone_is_enough() {
    let env = [("FANFARE__APPS__DEFAULT__VAPID_KEYS", "/k"), ("FANFARE__APPS__DEFAULT__SUBJECT", "mailto:a@b.dev")];
    let env = env.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned()));
    assert!(Config::load(None, env).is_ok());
}

#[test]
fn all_problems_at_once() {
    let text = "colour = 1\n[deliver]\ntimeout = 0\ntime_out = 3\n[retry]\nmin = 10\nmax = 5\n[nonsense]\nx = 1\n[endpoints]\npolicy = \"any\"\n";
    let found = keys(text, &[("FANFARE__DELIVER__DRIAN", "3")]);
    assert_eq!(
        found,
        ["apps", "colour", "deliver.drian", "deliver.time_out", "deliver.timeout", "endpoints.policy", "nonsense", "retry.min"]
    );
    let text = load(text, &[]).expect_err("wrong").to_string();
    assert!(text.contains("deliver.timeout: must be a number from 0.001 to 600, is 0"), "{text}");
    assert!(text.contains("deliver.time_out: is unknown; known here are connections_per_origin, drain"), "{text}");
}

#[test]
fn what_is_wrong_with_each_key() {
    for (text, key) in [
        ("data_dir = \"\"", "data_dir"),
        ("data_dir = 7", "data_dir"),
        ("deliver = 5", "deliver"),
        ("[ingest]\nsocket = \"\"", "ingest.socket"),
        ("[ingest]\nsocket_mode = 0o1777", "ingest.socket_mode"),
        ("[ingest]\nsocket_mode = 660", "ingest.socket_mode"),
        ("[ingest]\nsocket_mode = -1", "ingest.socket_mode"),
        ("[ingest]\nsocket_mode = \"rw\"", "ingest.socket_mode"),
        ("[ingest]\nsocket_mode = true", "ingest.socket_mode"),
        ("[ingest]\nsocket_group = 5", "ingest.socket_group"),
        ("[ingest]\nline_limit = 100", "ingest.line_limit"),
        ("[ingest]\nline_limit = 4194305", "ingest.line_limit"),
        ("[ingest]\nline_limit = \"1048576\"", "ingest.line_limit"),
        ("[ingest]\nconnections = 0", "ingest.connections"),
        ("[ingest]\nmemory_mb = 1.5", "ingest.memory_mb"),
        ("[metrics]\nlisten = \"localhost:9464\"", "metrics.listen"),
        ("[metrics]\nlisten = 9464", "metrics.listen"),
        ("[messages]\nttl_max = 2419201", "messages.ttl_max"),
        ("[messages]\nttl_max = 60", "messages.ttl_default"),
        ("[messages]\nttl0_patience = 0", "messages.ttl0_patience"),
        ("[messages]\nretention = -1", "messages.retention"),
        ("[messages]\nretention = nan", "messages.retention"),
        ("[messages]\nat_max = inf", "messages.at_max"),
        ("[messages]\nmax_pending = 0", "messages.max_pending"),
        ("[messages]\nmax_open = 0", "messages.max_open"),
        ("[events]\nlog = \"gone\"", "events.log"),
        ("[events]\nlog = [\"delivered\"]", "events.log"),
        ("[events]\nlog = [1]", "events.log"),
        ("[events]\nmax_mb = 0", "events.max_mb"),
        ("[store]\ncheckpoint_interval = 0", "store.checkpoint_interval"),
        ("[store]\ncache_mb = 1", "store.cache_mb"),
        ("[store]\nmin_free_percent = 100", "store.min_free_percent"),
        ("[store]\nmin_free_percent = -0.1", "store.min_free_percent"),
        ("[store]\nreserve_mb = -1", "store.reserve_mb"),
        ("[encrypt]\nthreads = -1", "encrypt.threads"),
        ("[encrypt]\npadding = 3994", "encrypt.padding"),
        ("[encrypt]\nwarm_memory = -1", "encrypt.warm_memory"),
        ("[deliver]\nconnections_per_origin = 0", "deliver.connections_per_origin"),
        ("[deliver]\norigins = 0", "deliver.origins"),
        ("[deliver]\ntimeout = \"30\"", "deliver.timeout"),
        ("[deliver]\ndrain = -1", "deliver.drain"),
        ("[deliver]\nproxy = \"proxy:3128\"", "deliver.proxy"),
        ("[deliver]\nproxy = \"https://proxy:3128\"", "deliver.proxy"),
        ("[deliver]\nproxy = \"http://u:p@proxy:3128\"", "deliver.proxy"),
        ("[deliver]\nproxy = \"http://proxy:3128/x\"", "deliver.proxy"),
        ("[deliver]\nextra_roots = []", "deliver.extra_roots"),
        ("[retry]\nmin = 0", "retry.min"),
        ("[registry]\nbrowsers_per_account = 0", "registry.browsers_per_account"),
        ("[presence]\ngrace = true", "presence.grace"),
        ("[endpoints]\npolicy = \"Known\"", "endpoints.policy"),
        ("[endpoints]\npolicy = 1", "endpoints.policy"),
        ("[endpoints]\nallow_hosts = [\"https://push.example.com\"]", "endpoints.allow_hosts"),
        ("[endpoints]\nallow_hosts = [\"*.example.com\"]", "endpoints.allow_hosts"),
        ("[endpoints]\nallow_hosts = [\"push.example.com:0\"]", "endpoints.allow_hosts"),
        ("[endpoints]\nallow_hosts = [\"push.example.com:https\"]", "endpoints.allow_hosts"),
        ("[endpoints]\nallow_hosts = [\"\"]", "endpoints.allow_hosts"),
        ("[endpoints]\nallow_hosts = [\"a b\"]", "endpoints.allow_hosts"),
        ("[endpoints]\nallow_hosts = [\"a..b\"]", "endpoints.allow_hosts"),
        ("[endpoints]\nallow_hosts = [\"A.b\", \"a.b.\"]", "endpoints.allow_hosts"),
        ("[endpoints]\nallow_networks = [\"10.0.0.0/33\"]", "endpoints.allow_networks"),
        ("[endpoints]\nallow_networks = [\"internal\"]", "endpoints.allow_networks"),
        ("[apps.\"a b\"]\nvapid_keys = [\"/k\"]\nsubject = \"mailto:a@b.dev\"", "apps.a b"),
        ("[apps.x]\nvapid_keys = []\nsubject = \"mailto:a@b.dev\"", "apps.x.vapid_keys"),
        ("[apps.x]\nvapid_keys = \"/k\"\nsubject = \"mailto:a@b.dev\"", "apps.x.vapid_keys"),
        ("[apps.x]\nvapid_keys = [\"\"]\nsubject = \"mailto:a@b.dev\"", "apps.x.vapid_keys"),
        ("[apps.x]\nvapid_keys = [\"$CREDENTIALS_DIRECTORY/k\"]\nsubject = \"mailto:a@b.dev\"", "apps.x.vapid_keys"),
        ("[apps.x]\nvapid_keys = [\"/k\"]", "apps.x.subject"),
        ("[apps.x]\nvapid_keys = [\"/k\"]\nsubject = \"mailto:a@b.dev\"\nscopes = \"news\"", "apps.x.scopes"),
        ("[apps.x]\nvapid_keys = [\"/k\"]\nsubject = \"mailto:a@b.dev\"\nscopes = [\"\"]", "apps.x.scopes"),
        ("[apps.x]\nvapid_keys = [\"/k\"]\nsubject = \"a@b.dev\"", "apps.x.subject"),
        ("[apps]\nx = 1", "apps.x"),
        ("[sockets.s]\napps = [\"default\"]", "sockets.s.path"),
        ("[sockets.s]\npath = \"/s\"", "sockets.s.apps"),
        ("[sockets.s]\npath = \"/s\"\napps = [\"nobody\"]", "sockets.s.apps"),
        ("[sockets.s]\npath = \"/run/fanfare/fanfare.sock\"\napps = [\"default\"]", "sockets.s.path"),
        ("[sockets.s]\npath = \"/s\"\napps = [\"default\"]\nsocket_mode = 0o600", "sockets.s.socket_mode"),
        ("[sockets.s]\npath = \"/s\"\napps = [\"default\"]\n[sockets.t]\npath = \"/s\"\napps = [\"default\"]", "sockets.t.path"),
    ] {
        assert_eq!(keys(&format!("{text}\n{APP}"), &[]), [key], "{text}");
    }
    let long = format!("[ingest]\nsocket = \"/{}\"\n{APP}", "a".repeat(107));
    assert_eq!(keys(&long, &[]), ["ingest.socket"]);
    for (name, value) in
        [("FANFARE__DELIVER__TIMEOUT", "soon"), ("FANFARE__DELIVER__TIMEOUT", "NaN"), ("FANFARE__DELIVER__TIMEOUT", "")]
    {
        assert_eq!(keys(APP, &[(name, value)]), ["deliver.timeout"]);
    }
    assert_eq!(keys(APP, &[("FANFARE__DELIVER", "5")]), ["deliver"]);
}

#[test]
fn hosts_and_networks() {
    let config = good(
        "[endpoints]\nallow_hosts = [\"Push.Example.COM.\", \"localhost:8443\", \"127.0.0.1:1\", \"::1\", \"[2001:DB8::1]:8443\", \"żółw.pl\"]\n\
         allow_networks = [\"127.0.0.0/8\", \"::1\"]",
        &[],
    );
    let hosts: Vec<(&str, Option<u16>)> =
        config.endpoints.allow_hosts.iter().map(|entry| (entry.host.as_str(), entry.port)).collect();
    assert_eq!(
        hosts,
        [
            ("push.example.com", None),
            ("localhost", Some(8443)),
            ("127.0.0.1", Some(1)),
            ("::1", None),
            ("2001:db8::1", Some(8443)),
            ("xn--w-uga1v8h.pl", None)
        ]
    );
    let networks: Vec<String> = config.endpoints.allow_networks.iter().map(ToString::to_string).collect();
    assert_eq!(networks, ["127.0.0.0/8", "::1/128"]);
}

#[test]
fn files_that_cannot_be_used() {
    let nowhere = Config::load(Some(Path::new("/nowhere/fanfare.toml")), std::iter::empty());
    assert!(matches!(nowhere, Err(Problems::Unreadable { error, .. }) if error.kind() == io::ErrorKind::NotFound));
    let directory = Config::load(Some(Path::new("/")), std::iter::empty());
    assert!(matches!(directory, Err(Problems::Unreadable { .. })));
    for text in ["[deliver", "deliver.timeout = ", "a = 1\na = 2", "[store]\n[store]", "x = 99999999999999999999"] {
        let found = problems(text, &[]);
        assert_eq!(found.len(), 1, "{text}: {found:?}");
        assert!(found[0].key.starts_with('/'), "names the file: {found:?}");
    }
}

#[test]
fn warnings_for_what_is_legal() {
    let config = good(
        "data_dir = \"here\"\n[ingest]\nsocket_mode = 0o666\n[metrics]\nlisten = \"0.0.0.0:9464\"\n[store]\nmin_free_percent = 0\n\
         [endpoints]\nallow_hosts = [\"com\", \"localhost\"]\nallow_networks = [\"0.0.0.0/0\"]",
        &[],
    );
    let warnings = config.warnings();
    assert_eq!(warnings.len(), 6, "{warnings:?}");
    let several = "[apps.a]\nvapid_keys = [\"/k\"]\nsubject = \"mailto:a@b.dev\"\n[apps.b]\nvapid_keys = [\"/k\"]\nsubject = \"mailto:a@b.dev\"\n";
    assert_eq!(load(several, &[]).expect("good").warnings().len(), 1);
}

#[test]
fn what_a_reload_does_not_apply_is_named() {
    let old = good("", &[]);
    assert_eq!(old.wants_restart(&good("", &[])), Vec::<String>::new());
    let applied =
        "[messages]\nttl_max = 77\nttl_default = 7\nat_max = 8\n[encrypt]\nwarm_memory = 1\n[endpoints]\npolicy = \"public\"";
    assert_eq!(old.wants_restart(&good(applied, &[])), Vec::<String>::new());
    // Each default of the shipped file, changed by itself, is applied or named.
    let applied = ["messages.ttl_default", "messages.ttl_max", "messages.at_max", "endpoints.policy", "encrypt.warm_memory"];
    let mut tried = 0;
    for (table, values) in File::from_str(&uncommented(), FileFormat::Toml).collect().expect("TOML") {
        let ValueKind::Table(values) = values.kind else { continue };
        for (key, value) in values.into_iter().filter(|_| table != "apps") {
            let ValueKind::I64(number) = value.kind else { continue };
            let other = if number > 1 { number - 1 } else { number + 1 };
            let Ok(new) = load(&format!("[{table}]\n{key} = {other}\n{APP}"), &[]) else { continue };
            let name = format!("{table}.{key}");
            let expected = if applied.contains(&name.as_str()) { vec![] } else { vec![name] };
            assert_eq!(old.wants_restart(&new), expected, "{table}.{key} = {other}");
            tried += 1;
        }
    }
    assert!(tried > 20, "{tried}");
    let more = "[sockets.shop]\npath = \"/s\"\napps = [\"default\"]\n[apps.shop]\nvapid_keys = [\"/l\"]\nsubject = \"mailto:a@fanfare.dev\"";
    let new = good(more, &[]);
    assert_eq!(old.wants_restart(&new), ["sockets.shop", "apps.shop"]);
    assert_eq!(new.wants_restart(&old), ["sockets.shop", "apps.shop"]);
}
