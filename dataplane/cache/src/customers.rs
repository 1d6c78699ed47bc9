//! Who asks, as a shard's cache sees it, and what is kept for whom.
//!
//! A **class** is the weight of a customer's service. A **guarantee** is a part of the cache that nobody else's
//! content may take: what is charged to a customer is no victim while it is within the guarantee. Content is charged
//! to the first customer that has an account (a guarantee or a time to live) and brings it in or uses it.
//!
//! Owns the accounts of one shard: at most [`ACCOUNTS_MAX`], some 100 bytes each.

use hashbrown::HashMap;
use xxhash_rust::xxh3::xxh3_64;

/// Customers with a guarantee or a time to live that a shard keeps account of.
pub const ACCOUNTS_MAX: usize = 4096;
/// All guarantees together get at most one part in this many of a tier: the rest flows.
pub const GUARANTEED_PART: u64 = 2;
/// Bits of a customer's key: as many as a record on disk has room for.
const KEY_BITS: u32 = 48;

/// A weight of a class of service, in twelfths of a power of two from 2^-10 to 2^10; exact for 1 and 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Class(u8);

impl Class {
    /// The weight 1: of who has no class.
    pub const NEUTRAL: Self = Self(128);

    /// The nearest one; what is none or below 0 counts as 0.
    pub fn of_weight(weight: f64) -> Self {
        if weight > 0.0 {
            // A cast saturates.
            Self((128.0 + 12.0 * weight.log2()).round().max(1.0) as u8)
        } else {
            Self(0)
        }
    }

    /// The weight that it stands for.
    pub fn weight(self) -> f64 {
        match self {
            Self::NEUTRAL => 1.0,
            Self(0) => 0.0,
            Self(code) => ((f64::from(code) - 128.0) / 12.0).exp2(),
        }
    }

    /// As it is kept in the index.
    pub(crate) fn code(self) -> u8 {
        self.0
    }

    pub(crate) fn from_code(code: u8) -> Self {
        Self(code)
    }
}

/// Who asks: made once for a customer, and copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Customer {
    /// A hash of the name; 0: nobody in particular.
    pub(crate) key: u64,
    pub(crate) class: Class,
}

impl Customer {
    /// Somebody without a name and of no class.
    pub const NOBODY: Self = Self { key: 0, class: Class::NEUTRAL };

    /// The customer of this name, in this class.
    pub fn new(name: &str, class: Class) -> Self {
        let key = xxh3_64(name.as_bytes()) & ((1 << KEY_BITS) - 1);
        Self { key: key.max(1), class }
    }

    /// The same for whatever class: what the cache knows the customer by.
    pub fn key(self) -> u64 {
        self.key
    }
}

/// What is kept for a customer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Terms {
    /// Bytes of this shard's cache, 0 for none.
    pub guaranteed_bytes: u64,
    /// What it has not used for so many minutes are the first victims; `None`: as the upstream says.
    pub ttl_minutes: Option<u16>,
}

impl Terms {
    fn is_none(self) -> bool {
        self == Self::default()
    }
}

/// How a customer stands to its guarantee, for status pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Share {
    /// [`Customer::key`].
    pub key: u64,
    /// What was promised, of this shard.
    pub guaranteed_bytes: u64,
    /// What of the memory and of the SSD that is, now.
    pub guaranteed_ram_bytes: u64,
    /// See `guaranteed_ram_bytes`.
    pub guaranteed_ssd_bytes: u64,
    /// What is charged to it in memory (whole slots), and on SSD (whole records).
    pub ram_bytes: u64,
    /// See `ram_bytes`.
    pub ssd_bytes: u64,
}

/// A tier that is charged for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Charged {
    Ram,
    Ssd,
}

/// Whom an object is charged to: a place among the accounts. 0 is nobody, who has no guarantee.
pub(crate) type AccountId = u16;
pub(crate) const NOBODY: AccountId = 0;

#[derive(Clone, Copy, Debug, Default)]
struct Account {
    key: u64,
    terms: Terms,
    objects: u32,
    bytes: [u64; 2],
    /// Its guarantee of each tier.
    guaranteed: [u64; 2],
    /// It is in the list of those above their guarantee.
    listed: bool,
}

/// The accounts of one shard.
pub(crate) struct Accounts {
    by_key: HashMap<u64, AccountId>,
    accounts: Vec<Account>,
    free: Vec<AccountId>,
    capacities: [u64; 2],
    guaranteed_sum: u128,
    ttls: u32,
    /// Accounts with a guarantee and more than that in memory; some may have less again.
    over_ram: Vec<AccountId>,
}

impl Accounts {
    pub(crate) fn new() -> Self {
        Self {
            by_key: HashMap::new(),
            accounts: vec![Account::default()],
            free: Vec::new(),
            capacities: [0; 2],
            guaranteed_sum: 0,
            ttls: 0,
            over_ram: Vec::new(),
        }
    }

    /// The account of a customer, if there is one. O(1).
    pub(crate) fn find(&self, key: u64) -> AccountId {
        if key == 0 { NOBODY } else { self.by_key.get(&key).copied().unwrap_or(NOBODY) }
    }

    /// The account of a key that a record on disk has; nobody's when there are too many.
    pub(crate) fn find_or_open(&mut self, key: u64) -> AccountId {
        match self.find(key) {
            NOBODY if key != 0 => self.open(key).unwrap_or(NOBODY),
            known => known,
        }
    }

    fn open(&mut self, key: u64) -> Option<AccountId> {
        let account = Account { key, ..Account::default() };
        let id = match self.free.pop() {
            Some(id) => {
                self.accounts[usize::from(id)] = account;
                id
            }
            None if self.accounts.len() <= ACCOUNTS_MAX => {
                self.accounts.push(account);
                (self.accounts.len() - 1) as AccountId
            }
            None => return None,
        };
        self.by_key.insert(key, id);
        Some(id)
    }

    /// Closes an account that nothing is charged to and nothing is promised to.
    fn close_if_idle(&mut self, id: AccountId) {
        let account = &self.accounts[usize::from(id)];
        if id != NOBODY && account.objects == 0 && account.terms.is_none() {
            debug_assert_eq!(account.bytes, [0; 2], "an account without objects has no bytes");
            self.by_key.remove(&account.key);
            self.accounts[usize::from(id)] = Account::default();
            self.free.push(id);
        }
    }

    /// Nothing is kept for whoever it was: what is charged to it may be charged to others.
    pub(crate) fn is_vacant(&self, id: AccountId) -> bool {
        self.accounts[usize::from(id)].terms.is_none()
    }

    pub(crate) fn key(&self, id: AccountId) -> u64 {
        self.accounts[usize::from(id)].key
    }

    /// What is kept for an account.
    pub(crate) fn terms(&self, id: AccountId) -> Terms {
        self.accounts[usize::from(id)].terms
    }

    pub(crate) fn ttl_minutes(&self, id: AccountId) -> Option<u16> {
        self.accounts[usize::from(id)].terms.ttl_minutes
    }

    /// Whether anybody has a time to live.
    pub(crate) fn any_ttl(&self) -> bool {
        self.ttls > 0
    }

    /// Sets what is kept for a customer; gives the account, if there is room for one.
    pub(crate) fn set_terms(&mut self, key: u64, terms: Terms) -> Option<AccountId> {
        let id = match self.find(key) {
            NOBODY if terms.is_none() || key == 0 => return Some(NOBODY),
            NOBODY => self.open(key)?,
            known => known,
        };
        let account = &mut self.accounts[usize::from(id)];
        let before = std::mem::replace(&mut account.terms, terms);
        let sum_before = self.guaranteed_sum;
        self.guaranteed_sum =
            sum_before - u128::from(before.guaranteed_bytes) + u128::from(terms.guaranteed_bytes);
        self.ttls -= u32::from(before.ttl_minutes.is_some());
        self.ttls += u32::from(terms.ttl_minutes.is_some());
        // While all of them have what was promised, one more changes nothing for the others.
        if sum_before.max(self.guaranteed_sum) <= u128::from(self.grantable()) {
            self.grant(id);
        } else {
            self.scale();
        }
        self.close_if_idle(id);
        Some(id)
    }

    /// Sets how much each tier has for cached content. Cheap when it is the same as before.
    pub(crate) fn set_capacities(&mut self, ram: u64, ssd: u64) {
        if self.capacities != [ram, ssd] {
            self.capacities = [ram, ssd];
            self.scale();
        }
    }

    /// What all guarantees together may have of the tier that they are of.
    fn grantable(&self) -> u64 {
        self.largest() / GUARANTEED_PART
    }

    /// The tier that guarantees are of; of the memory they are in proportion.
    fn largest(&self) -> u64 {
        let [ram, ssd] = self.capacities;
        if ssd > 0 { ssd } else { ram }
    }

    fn scale(&mut self) {
        for id in 1..self.accounts.len() as AccountId {
            self.grant(id);
        }
    }

    /// Sets what an account has of each tier: its part of what can be granted, and never more than was promised.
    fn grant(&mut self, id: AccountId) {
        let [ram, ssd] = self.capacities;
        let granted = u128::from(self.grantable()).min(self.guaranteed_sum);
        let (whole, sum) = (u128::from(self.largest().max(1)), self.guaranteed_sum.max(1));
        let account = &mut self.accounts[usize::from(id)];
        // Both factors are below 2^64.
        let share = u128::from(account.terms.guaranteed_bytes) * granted / sum;
        let of_ram = share * u128::from(ram) / whole;
        account.guaranteed = [of_ram as u64, if ssd > 0 { share as u64 } else { 0 }];
        self.list(id);
    }

    /// Whether a customer's content has to stay within a guarantee. O(1).
    pub(crate) fn is_guaranteed(&self, id: AccountId) -> bool {
        self.accounts[usize::from(id)].terms.guaranteed_bytes > 0
    }

    /// Whether what is charged to an account is within its guarantee, and so no victim. O(1).
    pub(crate) fn within(&self, id: AccountId, tier: Charged) -> bool {
        self.room(id, tier).is_some_and(|over| over == 0)
    }

    /// Bytes above the guarantee; `None` without one.
    pub(crate) fn room(&self, id: AccountId, tier: Charged) -> Option<u64> {
        let account = &self.accounts[usize::from(id)];
        let (bytes, guaranteed) = (account.bytes[tier as usize], account.guaranteed[tier as usize]);
        (guaranteed > 0).then(|| bytes.saturating_sub(guaranteed))
    }

    /// Whether a record more would still be within the guarantee of the SSD.
    pub(crate) fn has_room(&self, id: AccountId, tier: Charged) -> bool {
        let account = &self.accounts[usize::from(id)];
        account.bytes[tier as usize] < account.guaranteed[tier as usize]
    }

    /// The part of an account's bytes on SSD that is no victim, 0 to 1.
    pub(crate) fn guarded_part(&self, id: AccountId) -> f64 {
        let account = &self.accounts[usize::from(id)];
        let (bytes, guaranteed) =
            (account.bytes[Charged::Ssd as usize], account.guaranteed[Charged::Ssd as usize]);
        if bytes <= guaranteed {
            f64::from(u8::from(guaranteed > 0))
        } else {
            guaranteed as f64 / bytes as f64
        }
    }

    pub(crate) fn charge(&mut self, id: AccountId, tier: Charged, bytes: usize) {
        self.accounts[usize::from(id)].bytes[tier as usize] += bytes as u64;
        if tier == Charged::Ram {
            self.list(id);
        }
    }

    pub(crate) fn credit(&mut self, id: AccountId, tier: Charged, bytes: usize) {
        let charged = &mut self.accounts[usize::from(id)].bytes[tier as usize];
        debug_assert!(*charged >= bytes as u64, "more was given back than was charged");
        *charged = charged.saturating_sub(bytes as u64);
    }

    /// Bytes that are charged to an account.
    pub(crate) fn bytes(&self, id: AccountId, tier: Charged) -> u64 {
        self.accounts[usize::from(id)].bytes[tier as usize]
    }

    pub(crate) fn add_object(&mut self, id: AccountId) {
        self.accounts[usize::from(id)].objects += 1;
    }

    pub(crate) fn drop_object(&mut self, id: AccountId) {
        let account = &mut self.accounts[usize::from(id)];
        debug_assert!(account.objects > 0);
        account.objects = account.objects.saturating_sub(1);
        self.close_if_idle(id);
    }

    fn list(&mut self, id: AccountId) {
        let account = &mut self.accounts[usize::from(id)];
        let guaranteed = account.guaranteed[Charged::Ram as usize];
        let over =
            account.terms.guaranteed_bytes > 0 && account.bytes[Charged::Ram as usize] > guaranteed;
        if over && !account.listed {
            account.listed = true;
            self.over_ram.push(id);
        }
    }

    /// Accounts with a guarantee and more than that in memory. Those that have less again are taken out.
    pub(crate) fn over_ram(&mut self) -> &[AccountId] {
        let accounts = &mut self.accounts;
        self.over_ram.retain(|id| {
            let account = &mut accounts[usize::from(*id)];
            let guaranteed = account.guaranteed[Charged::Ram as usize];
            account.listed = account.terms.guaranteed_bytes > 0
                && account.bytes[Charged::Ram as usize] > guaranteed;
            account.listed
        });
        &self.over_ram
    }

    /// How those with a guarantee stand.
    pub(crate) fn shares(&self) -> impl Iterator<Item = Share> + '_ {
        self.accounts.iter().filter(|account| account.terms.guaranteed_bytes > 0).map(|account| {
            let [guaranteed_ram_bytes, guaranteed_ssd_bytes] = account.guaranteed;
            let [ram_bytes, ssd_bytes] = account.bytes;
            Share {
                key: account.key,
                guaranteed_bytes: account.terms.guaranteed_bytes,
                guaranteed_ram_bytes,
                guaranteed_ssd_bytes,
                ram_bytes,
                ssd_bytes,
            }
        })
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.accounts.len() - self.free.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn terms(guaranteed_bytes: u64) -> Terms {
        Terms { guaranteed_bytes, ttl_minutes: None }
    }

    fn key(name: &str) -> u64 {
        Customer::new(name, Class::NEUTRAL).key()
    }

    #[test]
    fn a_class_keeps_its_weight_to_a_few_percent_and_one_exactly() {
        assert_eq!(Class::of_weight(1.0), Class::NEUTRAL);
        assert_eq!(Class::of_weight(1.0).weight(), 1.0);
        assert_eq!(Class::of_weight(0.0).weight(), 0.0);
        assert_eq!(Class::of_weight(f64::NAN).weight(), 0.0);
        for weight in [0.002, 0.5, 1.5, 10.0, 333.3, 1000.0] {
            let kept = Class::of_weight(weight).weight();
            assert!((kept / weight - 1.0).abs() < 0.03, "{weight}: {kept}");
        }
        assert!(Class::of_weight(1e-9).weight() > 0.0);
    }

    #[test]
    fn all_guarantees_together_are_half_of_a_tier_and_never_more_than_promised() {
        let mut accounts = Accounts::new();
        accounts.set_capacities(1_000, 10_000);
        let one = accounts.set_terms(key("one"), terms(2_000)).unwrap();
        assert_eq!(accounts.accounts[usize::from(one)].guaranteed, [200, 2_000]);
        let two = accounts.set_terms(key("two"), terms(18_000)).unwrap();
        assert_eq!(accounts.accounts[usize::from(one)].guaranteed, [50, 500]);
        assert_eq!(accounts.accounts[usize::from(two)].guaranteed, [450, 4_500]);
        let all = accounts.set_terms(key("all"), terms(u64::MAX)).unwrap();
        let most = accounts.set_terms(key("most"), terms(u64::MAX)).unwrap();
        let granted = [all, most].map(|id| accounts.accounts[usize::from(id)].guaranteed[1]);
        assert!(granted.iter().sum::<u64>() <= 5_000 && granted[0] > 2_400, "{granted:?}");
        for name in ["all", "most"] {
            accounts.set_terms(key(name), Terms::default());
        }
        // Without an SSD it is of the memory.
        accounts.set_capacities(1_000, 0);
        assert_eq!(accounts.accounts[usize::from(one)].guaranteed, [50, 0]);
        accounts.set_terms(key("two"), Terms::default());
        assert_eq!(accounts.accounts[usize::from(one)].guaranteed, [500, 0]);
    }

    #[test]
    fn what_is_above_a_guarantee_is_a_victim_and_nobody_has_one() {
        let mut accounts = Accounts::new();
        accounts.set_capacities(1_000, 1_000);
        let id = accounts.set_terms(key("one"), terms(100)).unwrap();
        accounts.charge(id, Charged::Ram, 100);
        assert!(accounts.within(id, Charged::Ram) && accounts.over_ram().is_empty());
        accounts.charge(id, Charged::Ram, 1);
        assert!(!accounts.within(id, Charged::Ram));
        assert_eq!(accounts.over_ram(), [id]);
        accounts.credit(id, Charged::Ram, 50);
        assert!(accounts.within(id, Charged::Ram) && accounts.over_ram().is_empty());
        assert!(!accounts.within(NOBODY, Charged::Ram));
    }

    #[test]
    fn accounts_are_bounded_and_are_closed_when_nothing_is_left() {
        let mut accounts = Accounts::new();
        for n in 1..=ACCOUNTS_MAX as u64 {
            let id = accounts.find_or_open(n);
            assert_ne!(id, NOBODY);
            accounts.add_object(id);
        }
        assert_eq!(accounts.find_or_open(1 << 40), NOBODY);
        assert_eq!(accounts.set_terms(1 << 40, terms(1)), None);
        let id = accounts.find(7);
        accounts.drop_object(id);
        assert_eq!((accounts.find(7), accounts.len()), (NOBODY, ACCOUNTS_MAX));
        assert!(accounts.set_terms(1 << 40, terms(1)).is_some());
        accounts.set_terms(1 << 40, Terms::default());
        assert_eq!(accounts.find(1 << 40), NOBODY);
    }
}
