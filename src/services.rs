//! Push services by number, with their names, and which origins they have.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use crate::message::{Origin, Service};

/// Names and numbers of push services; each service's origins as far as they matter: none, one, or several.
#[derive(Default)]
pub struct Services {
    names: RwLock<Vec<(Service, Arc<str>)>>,
    origins: RwLock<HashMap<Service, Origins>>,
}

/// The origins that a service's committed deliveries go to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origins {
    /// It closes as a lane.
    One(Origin),
    /// Each origin closes by itself.
    Several,
}

impl Services {
    /// The word for a service in the protocol, logs and metrics.
    pub fn name(&self, service: Service) -> Arc<str> {
        let names = self.names.read().unwrap_or_else(PoisonError::into_inner);
        names.iter().find(|(known, _)| *known == service).map_or_else(|| Arc::from("other"), |(_, name)| name.clone())
    }

    /// All services that have a number.
    pub fn all(&self) -> Vec<(Service, Arc<str>)> {
        self.names.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The origins met so far.
    pub fn origins(&self, service: Service) -> Option<Origins> {
        self.origins.read().unwrap_or_else(PoisonError::into_inner).get(&service).cloned()
    }

    /// Whether the origin is known to be this service's.
    pub fn knows(&self, service: Service, origin: &str) -> bool {
        match self.origins.read().unwrap_or_else(PoisonError::into_inner).get(&service) {
            None => false,
            Some(Origins::One(known)) => *known.0 == *origin,
            Some(Origins::Several) => true,
        }
    }

    /// The service of an entry of `endpoints.allow_hosts`.
    pub(crate) fn of_allowed(&self, allowed: &str) -> Option<Service> {
        let names = self.names.read().unwrap_or_else(PoisonError::into_inner);
        names.iter().find(|(service, name)| **name == *allowed && *service >= Service::FIRST_ALLOWED).map(|(service, _)| *service)
    }

    /// The names are these from now on.
    pub(crate) fn name_all(&self, names: Vec<(Service, Arc<str>)>) {
        *self.names.write().unwrap_or_else(PoisonError::into_inner) = names;
    }

    /// A delivery to this origin was committed.
    pub(crate) fn learn(&self, service: Service, origin: Origin) {
        let mut origins = self.origins.write().unwrap_or_else(PoisonError::into_inner);
        origins
            .entry(service)
            .and_modify(|known| {
                if *known != Origins::One(origin.clone()) {
                    *known = Origins::Several;
                }
            })
            .or_insert(Origins::One(origin));
    }
}
