//! The aggregator of vipwitness: remembers what each node said, and shows it.
