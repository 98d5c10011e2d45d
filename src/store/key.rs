//! Keys on disk: big-endian fields, so that bytes sort as numbers do.
//!
//! ```text
//! work    <service u16><urgency u8><commit u64><piece u16><count u16>                 a row of singles
//! list    <commit u64><place u16><service u16><chunk u32><count u16>                  a row of a list
//! due     <service u16><urgency u8><time u64><delivery>                               what waits by itself
//! held    <holder 16 bytes><due key>                                                  what waits for `resume`
//! expiry  <time u64><0 work key | 1 due key>                                          who must be looked at, and when
//! head    <commit u64><first place u16>                                               up to 64 singles
//! outcome <0><commit u64><service u16><urgency u8><piece u16>                         one byte a recipient
//!         <1><commit u64><place u16><service u16><urgency u8><chunk u32>
//!         <2><commit u64><place u16><service u16><urgency u8><first serial u64>       of a stretch, see `registry::walk`
//! ```
//! `count`, the number of recipients, stands in the key so that scheduling never reads a value.

use crate::message::{BatchId, DeliveryId, Lane, Service, UnixMillis, Urgency};
use crate::store::record::{Corrupt, Put};

/// Key of a row in `work`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WorkKey {
    pub lane: Lane,
    pub commit: u64,
    pub piece: u16,
    pub count: u16,
}

impl WorkKey {
    pub fn batch(&self) -> BatchId {
        BatchId::Commit { commit: self.commit, lane: self.lane, piece: self.piece }
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut put = Put::default();
        lane(&mut put, self.lane);
        put.u64(self.commit).u16(self.piece).u16(self.count);
        put.0
    }

    pub fn decode(key: &[u8]) -> Result<WorkKey, Corrupt> {
        let mut fields = Fields(key);
        let decoded = WorkKey { lane: fields.lane()?, commit: fields.u64()?, piece: fields.u16()?, count: fields.u16()? };
        fields.end(decoded)
    }
}

/// Key of a row in `list`. Urgency is the message's, kept here for the batch's id only and not written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChunkKey {
    pub commit: u64,
    pub place: u16,
    pub service: Service,
    pub chunk: u32,
    pub count: u16,
}

impl ChunkKey {
    pub fn batch(&self, urgency: Urgency) -> BatchId {
        let lane = Lane { service: self.service, urgency };
        BatchId::Chunk { commit: self.commit, place: self.place, lane, chunk: self.chunk }
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut put = Put(list_prefix(self.commit, self.place));
        put.u16(self.service.0).u32(self.chunk).u16(self.count);
        put.0
    }

    pub fn decode(key: &[u8]) -> Result<ChunkKey, Corrupt> {
        let mut fields = Fields(key);
        let decoded = ChunkKey {
            commit: fields.u64()?,
            place: fields.u16()?,
            service: Service(fields.u16()?),
            chunk: fields.u32()?,
            count: fields.u16()?,
        };
        fields.end(decoded)
    }
}

/// The rows of one list.
pub fn list_prefix(commit: u64, place: u16) -> Vec<u8> {
    let mut put = Put::default();
    put.u64(commit).u16(place);
    put.0
}

/// Where the chunks of one service of a list begin.
pub fn list_service_prefix(commit: u64, place: u16, service: Service) -> Vec<u8> {
    let mut put = Put(list_prefix(commit, place));
    put.u16(service.0);
    put.0
}

/// Key of a row in `due`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DueKey {
    pub lane: Lane,
    pub time: UnixMillis,
    pub delivery: DeliveryId,
}

impl DueKey {
    pub fn encode(&self) -> Vec<u8> {
        let mut put = Put(due_prefix(self.lane, self.time));
        put.bytes(&batch_key(&self.delivery.batch)).u16(self.delivery.index);
        put.0
    }

    pub fn decode(key: &[u8]) -> Result<DueKey, Corrupt> {
        let mut fields = Fields(key);
        let decoded = DueKey {
            lane: fields.lane()?,
            time: UnixMillis(fields.u64()?),
            delivery: DeliveryId { batch: fields.batch()?, index: fields.u16()? },
        };
        fields.end(decoded)
    }
}

/// Where the rows of a lane that are due at `time` begin.
pub fn due_prefix(lane_: Lane, time: UnixMillis) -> Vec<u8> {
    let mut put = Put::default();
    lane(&mut put, lane_);
    put.u64(time.0);
    put.0
}

/// Where the rows of a lane begin, in `work` and `due`.
pub fn lane_prefix(lane_: Lane) -> Vec<u8> {
    let mut put = Put::default();
    lane(&mut put, lane_);
    put.0
}

/// The first key behind all that begin with `prefix` (of which not every byte is 255).
pub fn after_prefix(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < 255 {
            end.push(last + 1);
            return end;
        }
    }
    end
}

/// The first key that comes after this one.
pub fn just_behind(key: &[u8]) -> Vec<u8> {
    let mut behind = key.to_vec();
    behind.push(0);
    behind
}

/// Key of a batch's row in `outcome`.
pub fn batch_key(batch: &BatchId) -> Vec<u8> {
    let mut put = Put::default();
    match *batch {
        BatchId::Commit { commit, lane: of, piece } => {
            put.u8(0).u64(commit);
            lane(&mut put, of);
            put.u16(piece);
        }
        BatchId::Chunk { commit, place, lane: of, chunk } => {
            put.u8(1).u64(commit).u16(place);
            lane(&mut put, of);
            put.u32(chunk);
        }
        BatchId::Stretch { commit, place, lane: of, first } => {
            put.u8(2).u64(commit).u16(place);
            lane(&mut put, of);
            put.u64(first);
        }
    }
    put.0
}

/// The batch of a row in `outcome`.
pub fn batch_from_key(key: &[u8]) -> Result<BatchId, Corrupt> {
    let mut fields = Fields(key);
    let batch = fields.batch()?;
    fields.end(batch)
}

/// Where the outcome rows of singles of `commit` begin.
pub fn outcome_commit_prefix(commit: u64) -> Vec<u8> {
    let mut put = Put::default();
    put.u8(0).u64(commit);
    put.0
}

/// Where the outcome rows of a list begin.
pub fn outcome_list_prefix(commit: u64, place: u16) -> Vec<u8> {
    let mut put = Put::default();
    put.u8(1).u64(commit).u16(place);
    put.0
}

/// Where the outcome rows of a campaign begin.
pub fn outcome_campaign_prefix(commit: u64, place: u16) -> Vec<u8> {
    let mut put = Put::default();
    put.u8(2).u64(commit).u16(place);
    put.0
}

/// Key of a row in `head`.
pub fn head_key(commit: u64, first_place: u16) -> Vec<u8> {
    list_prefix(commit, first_place)
}

/// What a row of `expiry` points to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waiting {
    Work(WorkKey),
    Due(DueKey),
}

/// Key of a row in `expiry`.
pub fn expiry_key(time: UnixMillis, waiting: &Waiting) -> Vec<u8> {
    let mut put = Put::default();
    put.u64(time.0);
    match waiting {
        Waiting::Work(key) => put.u8(0).bytes(&key.encode()),
        Waiting::Due(key) => put.u8(1).bytes(&key.encode()),
    };
    put.0
}

/// Time and pointer of a row of `expiry`.
pub fn expiry_decode(key: &[u8]) -> Result<(UnixMillis, Waiting), Corrupt> {
    let mut fields = Fields(key);
    let time = UnixMillis(fields.u64()?);
    let waiting = match fields.u8()? {
        0 => Waiting::Work(WorkKey::decode(fields.0)?),
        1 => Waiting::Due(DueKey::decode(fields.0)?),
        _ => return Err(Corrupt),
    };
    Ok((time, waiting))
}

fn lane(put: &mut Put, lane: Lane) {
    put.u16(lane.service.0).u8(lane.urgency as u8);
}

/// The fields of a key, from its front.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], Corrupt> {
        let (field, rest) = self.0.split_first_chunk::<N>().ok_or(Corrupt)?;
        self.0 = rest;
        Ok(*field)
    }

    fn u8(&mut self) -> Result<u8, Corrupt> {
        Ok(self.array::<1>()?[0])
    }

    fn u16(&mut self) -> Result<u16, Corrupt> {
        Ok(u16::from_be_bytes(self.array()?))
    }

    fn u32(&mut self) -> Result<u32, Corrupt> {
        Ok(u32::from_be_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64, Corrupt> {
        Ok(u64::from_be_bytes(self.array()?))
    }

    fn lane(&mut self) -> Result<Lane, Corrupt> {
        let service = Service(self.u16()?);
        let urgency = *Urgency::ALL.get(usize::from(self.u8()?)).ok_or(Corrupt)?;
        Ok(Lane { service, urgency })
    }

    fn batch(&mut self) -> Result<BatchId, Corrupt> {
        Ok(match self.u8()? {
            0 => BatchId::Commit { commit: self.u64()?, lane: self.lane()?, piece: self.u16()? },
            1 => BatchId::Chunk { commit: self.u64()?, place: self.u16()?, lane: self.lane()?, chunk: self.u32()? },
            2 => BatchId::Stretch { commit: self.u64()?, place: self.u16()?, lane: self.lane()?, first: self.u64()? },
            _ => return Err(Corrupt),
        })
    }

    fn end<T>(&self, decoded: T) -> Result<T, Corrupt> {
        if self.0.is_empty() { Ok(decoded) } else { Err(Corrupt) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn a_lane(service: u16, urgency: Urgency) -> Lane {
        Lane { service: Service(service), urgency }
    }

    #[test]
    fn keys_come_back_and_sort_as_their_fields_do() {
        let mut keys = Vec::new();
        for service in [1, 300] {
            for urgency in Urgency::ALL {
                for commit in [1, 255, 256, 1 << 40] {
                    keys.push(WorkKey { lane: a_lane(service, urgency), commit, piece: 2, count: 9 });
                }
            }
        }
        let encoded: Vec<_> = keys.iter().map(WorkKey::encode).collect();
        assert!(encoded.is_sorted());
        for (key, bytes) in keys.iter().zip(&encoded) {
            assert_eq!(WorkKey::decode(bytes), Ok(*key));
            assert!(WorkKey::decode(&bytes[1..]).is_err());
        }
    }

    #[test]
    fn due_and_expiry_keys_come_back() {
        let lane = a_lane(16, Urgency::Low);
        for batch in [BatchId::Commit { commit: 7, lane, piece: 1 }, BatchId::Chunk { commit: 7, place: 3, lane, chunk: 70_000 }]
        {
            let key = DueKey { lane, time: UnixMillis(99), delivery: DeliveryId { batch, index: 12 } };
            assert_eq!(DueKey::decode(&key.encode()), Ok(key));
            let bytes = expiry_key(UnixMillis(5), &Waiting::Due(key));
            assert_eq!(expiry_decode(&bytes), Ok((UnixMillis(5), Waiting::Due(key))));
        }
        let key = ChunkKey { commit: 1, place: 2, service: Service(3), chunk: 4, count: 5 };
        assert_eq!(ChunkKey::decode(&key.encode()), Ok(key));
    }

    #[test]
    fn after_prefix_is_the_next_prefix() {
        assert_eq!(after_prefix(&[1, 255]), [2]);
        assert_eq!(after_prefix(&[1, 2]), [1, 3]);
    }
}
