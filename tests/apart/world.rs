//! A daemon with the app `news` and its socket, and, or not, the app `shop` and its own.

use fanfare_loadtest::client::Client;
use fanfare_loadtest::daemon::{ConfigBuilder, Daemon, write_vapid_key};
use fanfare_loadtest::mock::Mock;
use serde_json::json;
use tempfile::TempDir;

/// The apps' VAPID keys: the same in every world.
pub struct Keys(TempDir);

impl Keys {
    pub fn write() -> Keys {
        let directory = TempDir::new().expect("a temporary directory");
        for name in ["shop", "shop-second", "news", "default"] {
            write_vapid_key(&directory.path().join(name)).expect("writable");
        }
        Keys(directory)
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).to_str().expect("text").to_owned()
    }
}

pub struct World {
    /// Runs as long as this lives.
    _daemon: Daemon,
    sockets: TempDir,
}

impl World {
    pub fn start(mock: &Mock, keys: &Keys, shop: bool) -> World {
        let sockets = TempDir::new().expect("a temporary directory");
        let mut config = ConfigBuilder::new()
            .mock(mock)
            .set("apps.default.vapid_keys", json!([keys.path("default")]))
            .set("presence.grace", 1)
            .set("store.checkpoint_interval", 0.05);
        let apps = [("news", vec![keys.path("news")]), ("shop", vec![keys.path("shop"), keys.path("shop-second")])];
        for (app, keys) in apps.into_iter().take(1 + usize::from(shop)) {
            config = config
                .set(&format!("apps.{app}.vapid_keys"), json!(keys))
                .set(&format!("apps.{app}.subject"), "mailto:ops@example.com")
                .set(&format!("sockets.{app}.path"), sockets.path().join(app).to_str().expect("text"))
                .set(&format!("sockets.{app}.apps"), json!([app]));
        }
        let daemon = Daemon::start(env!("CARGO_BIN_EXE_fanfare"), config).expect("the daemon starts");
        World { _daemon: daemon, sockets }
    }

    pub fn client(&self, app: &str) -> Client {
        Client::connect(self.sockets.path().join(app)).expect("it listens")
    }
}
