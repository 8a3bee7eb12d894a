//! The history of a run: what was asked, answered, broken and seen, one event a line, JSON, append only, versioned
//! ([`event`] is its schema, [`mod@write`] and [`mod@read`] its ends). Never says whether what happened was right.

pub mod event;
pub mod observation;
pub mod read;
pub mod write;

pub use self::event::{Begin, Call, End, Event, Expect, Fault, FaultStep, Invoke, Result, VERSION, What};
pub use self::observation::{Observation, Phase, Problem};
pub use self::read::{ReadError, Reader};
pub use self::write::{Recorder, Watch, Writer};
