//! Event files that TensorBoard reads: scalars, written as TFRecords.
//!
//! Format:  u64 length | u32 masked crc of length | bytes | u32 masked crc of bytes   (little endian)
//!          mask(crc) = rotate_right(crc, 15) + 0xa282ead8, crc is CRC-32C
//! Payload: `tensorflow.Event`, of which only the fields written here are declared below
//!          (tensorflow/core/util/event.proto, framework/summary.proto).
//!
//! Several files in one folder are one run to TensorBoard. Its marker for a restart voids what any
//! file holds of later steps, whichever stage they are of, so a resumed run begins the folder anew.

use std::{
    fs::{self, File},
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
    time::{SystemTime, UNIX_EPOCH},
};

use prost::Message;

/// Added to the rotated checksum, so that a checksum of data holding checksums stays strong.
const CRC_MASK_DELTA: u32 = 0xa282_ead8;

/// Keeps two writers of one process that start in the same second apart.
static FILES_CREATED: AtomicU64 = AtomicU64::new(0);

/// Appends events to one file of a TensorBoard folder.
///
/// Events are buffered: call [`flush`](Self::flush) after each step that should be seen at once.
/// Dropping the writer flushes too, but cannot report a failure.
#[derive(Debug)]
pub struct EventWriter {
    file: BufWriter<File>,
    path: PathBuf,
}

impl EventWriter {
    /// Creates `dir` where it is missing and starts a new event file in it.
    ///
    /// # Errors
    /// If the folder or the file cannot be written.
    pub fn create(dir: impl AsRef<Path>) -> io::Result<Self> {
        let dir = dir.as_ref();
        fs::create_dir_all(dir)?;
        let nth = FILES_CREATED.fetch_add(1, Ordering::Relaxed);
        let (seconds, process) = (unix_seconds() as u64, std::process::id());
        // TensorBoard takes any name that holds "tfevents" and reads files in the order of their names.
        let path = dir.join(format!("events.out.tfevents.{seconds:010}.tallow.{process}.{nth}"));
        let file = File::options().write(true).create_new(true).open(&path)?;
        let mut writer = Self { file: BufWriter::new(file), path };
        writer.append(unix_seconds(), 0, What::FileVersion("brain.Event:2".to_owned()))?;
        writer.flush()?;
        Ok(writer)
    }

    /// The file this writer appends to.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Records named numbers of one step, measured at `wall_time` (seconds since 1970). Values are
    /// stored as f32, as TensorBoard does.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn scalars(&mut self, wall_time: f64, step: u64, values: &[(&str, f64)]) -> io::Result<()> {
        if values.is_empty() {
            return Ok(());
        }
        let value = values
            .iter()
            .map(|&(name, value)| SummaryValue {
                tag: name.to_owned(),
                value: Some(Value::SimpleValue(value as f32)),
            })
            .collect();
        self.append(wall_time, step, What::Summary(Summary { value }))
    }

    /// Hands everything recorded so far to the operating system.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }

    fn append(&mut self, wall_time: f64, step: u64, what: What) -> io::Result<()> {
        let event = Event { wall_time, step: step as i64, what: Some(what) };
        self.file.write_all(&framed(&event.encode_to_vec()))
    }
}

/// One TFRecord around `payload`.
fn framed(payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u64).to_le_bytes();
    let mut record = Vec::with_capacity(payload.len() + 16);
    record.extend_from_slice(&length);
    record.extend_from_slice(&masked_crc(&length).to_le_bytes());
    record.extend_from_slice(payload);
    record.extend_from_slice(&masked_crc(payload).to_le_bytes());
    record
}

fn masked_crc(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(CRC_MASK_DELTA)
}

/// Seconds since 1970; 0 on a clock set before.
pub fn unix_seconds() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |age| age.as_secs_f64())
}

#[derive(Clone, PartialEq, Message)]
struct Event {
    #[prost(double, tag = "1")]
    wall_time: f64,
    #[prost(int64, tag = "2")]
    step: i64,
    #[prost(oneof = "What", tags = "3, 5")]
    what: Option<What>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum What {
    #[prost(string, tag = "3")]
    FileVersion(String),
    #[prost(message, tag = "5")]
    Summary(Summary),
}

#[derive(Clone, PartialEq, Message)]
struct Summary {
    #[prost(message, repeated, tag = "1")]
    value: Vec<SummaryValue>,
}

#[derive(Clone, PartialEq, Message)]
struct SummaryValue {
    #[prost(string, tag = "1")]
    tag: String,
    #[prost(oneof = "Value", tags = "2")]
    value: Option<Value>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum Value {
    #[prost(float, tag = "2")]
    SimpleValue(f32),
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads a file of records back and checks both checksums of each.
    fn events(path: &Path) -> Vec<Event> {
        let bytes = fs::read(path).unwrap();
        let mut rest = bytes.as_slice();
        let mut events = Vec::new();
        while !rest.is_empty() {
            let (length, after) = rest.split_at(8);
            let (length_crc, after) = after.split_at(4);
            let payload_len = u64::from_le_bytes(length.try_into().unwrap()) as usize;
            let (payload, after) = after.split_at(payload_len);
            let (payload_crc, after) = after.split_at(4);
            assert_eq!(masked_crc(length).to_le_bytes(), length_crc);
            assert_eq!(masked_crc(payload).to_le_bytes(), payload_crc);
            events.push(Event::decode(payload).unwrap());
            rest = after;
        }
        events
    }

    #[test]
    fn checksum_agrees_with_tensorflow() {
        // The eight length bytes and checksum that open every file TensorFlow writes with a
        // 24-byte version record: 18 00 .. 00 | a3 7f 4b 22.
        assert_eq!(masked_crc(&24u64.to_le_bytes()).to_le_bytes(), [0xa3, 0x7f, 0x4b, 0x22]);
    }

    #[test]
    fn scalars_read_back_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = EventWriter::create(dir.path().join("nested")).unwrap();
        let values = [("rollout/accuracy", 0.25), ("learner/kl_nats", 1e-7)];
        writer.scalars(9.5, 3, &values).unwrap();
        writer.flush().unwrap();

        let events = events(writer.path());
        assert_eq!(events.len(), 2);
        assert_eq!(events[0].what, Some(What::FileVersion("brain.Event:2".to_owned())));
        let Some(What::Summary(scalars)) = &events[1].what else { panic!("no scalars") };
        assert_eq!((events[1].step, events[1].wall_time), (3, 9.5));
        assert_eq!(scalars.value[1].tag, "learner/kl_nats");
        assert_eq!(scalars.value[1].value, Some(Value::SimpleValue(1e-7)));
    }

    #[test]
    fn no_values_write_no_event() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = EventWriter::create(dir.path()).unwrap();
        writer.scalars(0.0, 1, &[]).unwrap();
        writer.flush().unwrap();
        assert_eq!(events(writer.path()).len(), 1);
    }
}
