//! What a run happens on. One folder a backend; each takes a scenario and a seed and leaves a history. Judges nothing.

pub(crate) mod payload;
pub(crate) mod proc;
pub(crate) mod sim;
