//! Brings a file of an earlier layout up to date: of the first one, which had no marks and no dependants, or the second
//! one, which had dependants in tables of their own.

use std::collections::HashMap;

use redb::{Database, ReadableTable as _, TableDefinition};

use super::tables::{
    CONTAINS, CONTENT_SHARES, CONTENT_STATES, EARLY, EARLY_ORDER, FORMAT, Fault, MARKS, META,
    META_FORMAT, OWNERS, VERSION_STATES, unpack,
};
use crate::Kind;
use crate::plan::DEPENDANTS_OF_CUSTOMER_MAX;

/// First seen, versions, below, above.
const STATES: TableDefinition<'_, u64, (u64, u64, u64, u64)> =
    TableDefinition::new("content-states");
/// What stands in other tables now.
const CONTENT_OWNERS: TableDefinition<'_, (u64, u64), ()> = TableDefinition::new("content-owners");
const DEPENDANTS: TableDefinition<'_, u64, u64> = TableDefinition::new("dependants");

/// In one transaction. Counts dependants anew: a pass over all that versions contain.
pub(super) fn upgrade(database: &Database) -> Result<(), Fault> {
    let transaction = database.begin_write()?;
    transaction.delete_table(CONTENT_SHARES)?;
    {
        transaction.open_table(MARKS)?;
        transaction.open_table(EARLY)?;
        transaction.open_table(EARLY_ORDER)?;
        let owners = transaction.open_table(OWNERS)?;
        let contains = transaction.open_table(CONTAINS)?;
        let kinds = transaction.open_table(VERSION_STATES)?;
        let mut shares = transaction.open_table(CONTENT_SHARES)?;
        let mut dependants: HashMap<u64, u64> = HashMap::new();
        for owner in owners.iter()? {
            let (version, customer) = owner?.0.value();
            let kind = kinds.get(version)?.map(|row| row.value().0);
            let (Some(row), true) = (contains.get(version)?, kind != Some(Kind::Index.code()))
            else {
                continue;
            };
            for content in unpack(row.value()) {
                let key = (content, customer);
                let before = shares.get(key)?.map_or(0, |count| count.value());
                if before < DEPENDANTS_OF_CUSTOMER_MAX {
                    shares.insert(key, before + 1)?;
                    *dependants.entry(content).or_default() += 1;
                }
            }
        }
        let before = transaction.open_table(STATES)?;
        let mut states = transaction.open_table(CONTENT_STATES)?;
        for entry in before.iter()? {
            let (serial, state) = entry?;
            let (first, versions, below, above) = state.value();
            let sum = dependants.get(&serial.value()).copied().unwrap_or(0);
            states.insert(serial.value(), (first, versions, below, above, sum))?;
        }
        transaction.open_table(META)?.insert(META_FORMAT, FORMAT)?;
    }
    transaction.delete_table(STATES)?;
    transaction.delete_table(CONTENT_OWNERS)?;
    transaction.delete_table(DEPENDANTS)?;
    transaction.commit()?;
    Ok(())
}
