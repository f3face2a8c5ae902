-- Queue and ledger in one file. Money and counts are integers: nano-dollars,
-- tokens, requests. Instants are Unix milliseconds. Balances are sums over
-- reservations, kept for speed; `scheduler audit` recomputes them.

-- One row per process that has taken requests and has not gone.
CREATE TABLE workers (
  id         INTEGER PRIMARY KEY AUTOINCREMENT,  -- never given twice: lanes remember it
  host       TEXT    NOT NULL,  -- machine, boot and pid namespace
  pid        INTEGER NOT NULL,
  started    TEXT    NOT NULL,  -- tells a process from a later one with the same pid
  seen_at_ms INTEGER NOT NULL,
  is_lost    INTEGER NOT NULL DEFAULT 0, -- silent for longer than its lease: its keys may be taken
  about      TEXT                        -- JSON: what it sends for others; NULL: nothing
) STRICT;

CREATE TABLE budgets (
  id         INTEGER PRIMARY KEY,
  name       TEXT    NOT NULL UNIQUE,
  definition TEXT    NOT NULL,  -- JSON: spec, models, tags, parent
  is_paused  INTEGER NOT NULL DEFAULT 0
) STRICT;

-- One row per cap of a budget.
CREATE TABLE accounts (
  id             INTEGER PRIMARY KEY AUTOINCREMENT,  -- never given twice: sums remember it
  budget_id      INTEGER NOT NULL,
  position       INTEGER NOT NULL,
  cap            TEXT    NOT NULL,
  warned         INTEGER NOT NULL DEFAULT 0,  -- highest threshold told, in percent
  warned_slot_ms INTEGER NOT NULL DEFAULT 0,
  waiter         TEXT,                        -- JSON: who is first in line
  risk           TEXT                         -- which one is taken; NULL: ceilings count
) STRICT;
CREATE INDEX accounts_of_budget ON accounts (budget_id, position);
CREATE INDEX accounts_at_risk ON accounts (budget_id) WHERE risk IS NOT NULL;
CREATE INDEX accounts_in_line ON accounts (budget_id) WHERE waiter IS NOT NULL;

CREATE TABLE balances (
  account_id INTEGER NOT NULL,
  slot_ms    INTEGER NOT NULL,
  posted     INTEGER NOT NULL,
  reserved   INTEGER NOT NULL CHECK (reserved >= 0),
  suspense   INTEGER NOT NULL CHECK (suspense >= 0),
  overrun    INTEGER NOT NULL,
  PRIMARY KEY (account_id, slot_ms)
) STRICT, WITHOUT ROWID;

-- Requests for one model that draw on the same budgets and provider: of one process, or anybody's.
CREATE TABLE lanes (
  id              INTEGER PRIMARY KEY AUTOINCREMENT,  -- never given twice: processes remember it
  worker_id       INTEGER NOT NULL,  -- 0: shared, any process may send them
  provider        TEXT    NOT NULL,
  budgets         TEXT    NOT NULL,  -- ",1,2,"
  priority        INTEGER NOT NULL,
  may_wait        INTEGER NOT NULL,
  waiting         INTEGER NOT NULL DEFAULT 0,
  shortfall       TEXT,              -- JSON: why it is shut; NULL: open
  shut_since_ms   INTEGER NOT NULL DEFAULT 0,
  parked_total_ms INTEGER NOT NULL DEFAULT 0,
  model           TEXT    NOT NULL DEFAULT '',
  service         TEXT    NOT NULL DEFAULT '', -- which one the provider's name means
  tenant          TEXT    NOT NULL DEFAULT '', -- with whom it shares what there is
  is_due          INTEGER NOT NULL DEFAULT 0   -- its requests have deadlines, and go by these
) STRICT;
CREATE INDEX lanes_of_worker ON lanes (worker_id, budgets);
CREATE UNIQUE INDEX lanes_shared ON lanes
  (provider, model, budgets, priority, may_wait, service, tenant, is_due) WHERE worker_id = 0;

CREATE TABLE jobs (
  id   INTEGER PRIMARY KEY,
  name TEXT NOT NULL UNIQUE
) STRICT;

-- How many requests of a job are in each state.
CREATE TABLE tallies (
  job_id INTEGER NOT NULL,
  state  TEXT    NOT NULL,
  count  INTEGER NOT NULL,
  PRIMARY KEY (job_id, state)
) STRICT, WITHOUT ROWID;

CREATE TABLE requests (
  id              INTEGER PRIMARY KEY,
  job_id          INTEGER NOT NULL,
  key             TEXT,
  digest          TEXT    NOT NULL,
  lane_id         INTEGER NOT NULL,
  worker_id       INTEGER NOT NULL DEFAULT 0,  -- the lane's, of what is live
  state           TEXT    NOT NULL,  -- queued, delayed, running, or an end
  model           TEXT    NOT NULL,
  ceiling_nusd    INTEGER NOT NULL,
  ceiling_tokens  INTEGER NOT NULL,
  expected_nusd   INTEGER NOT NULL,
  submitted_at_ms INTEGER NOT NULL,
  not_before_ms   INTEGER,
  expires_at_ms   INTEGER,
  attempts        INTEGER NOT NULL DEFAULT 0,
  cost_nusd       INTEGER NOT NULL DEFAULT 0,
  parked_mark_ms  INTEGER NOT NULL,  -- the lane's parked clock when it began to wait
  parked_ms       INTEGER NOT NULL DEFAULT 0,
  reservation_id  INTEGER,
  is_delivered    INTEGER NOT NULL,  -- its outcome reached its file, or needs none
  payload         TEXT,              -- JSON of the request
  error           TEXT,              -- JSON: why it failed
  ended_at_ms     INTEGER,           -- NULL: it lives
  input_tokens    INTEGER NOT NULL DEFAULT 0,  -- as rate limits count: a guess,
  output_tokens   INTEGER NOT NULL DEFAULT 0,  -- and the cap in the body; 0: none
  due_at_ms       INTEGER,           -- its deadline; NULL: it has none
  tags            TEXT               -- JSON: as spend is summed by them; NULL: none
) STRICT;
CREATE UNIQUE INDEX requests_by_key ON requests (job_id, key) WHERE key IS NOT NULL;
CREATE INDEX requests_queued ON requests (lane_id, id) WHERE state = 'queued';
CREATE INDEX requests_due ON requests (lane_id, due_at_ms, id)
  WHERE state = 'queued' AND due_at_ms IS NOT NULL;
CREATE INDEX requests_delayed ON requests (worker_id, not_before_ms) WHERE state = 'delayed';
CREATE INDEX requests_expiring ON requests (worker_id, expires_at_ms)
  WHERE expires_at_ms IS NOT NULL AND state IN ('queued', 'delayed');
-- By whether it has ended, and not by its state: starting a request touches none of these.
CREATE INDEX requests_live ON requests (job_id, id) WHERE ended_at_ms IS NULL;
CREATE INDEX requests_outcomes ON requests (job_id, is_delivered, id)
  WHERE key IS NOT NULL AND ended_at_ms IS NOT NULL;
CREATE INDEX requests_by_end ON requests (state, id) WHERE ended_at_ms IS NOT NULL;
CREATE INDEX requests_ended ON requests (lane_id, is_delivered, ended_at_ms)
  WHERE ended_at_ms IS NOT NULL;

CREATE TABLE responses (
  request_id INTEGER PRIMARY KEY,
  response   TEXT NOT NULL  -- JSON
) STRICT;

-- Every attempt's money. Pruning folds rows into `sums`.
CREATE TABLE reservations (
  id             INTEGER PRIMARY KEY,
  request_id     INTEGER NOT NULL,
  worker_id      INTEGER NOT NULL,
  job_id         INTEGER NOT NULL,
  budgets        TEXT    NOT NULL,  -- ",1,2,"
  model          TEXT    NOT NULL,
  state          TEXT    NOT NULL,  -- pending, posted, voided, suspense
  made_at_ms     INTEGER NOT NULL,
  settled_at_ms  INTEGER,
  ceiling_nusd   INTEGER NOT NULL,
  ceiling_tokens INTEGER NOT NULL,
  nusd           INTEGER NOT NULL DEFAULT 0,
  tokens         INTEGER NOT NULL DEFAULT 0,
  is_assumed     INTEGER NOT NULL DEFAULT 0,  -- settled by a policy or a person
  provider_id    TEXT,                        -- the provider's own id for a lost call
  why            TEXT,                        -- what is known of an unknown outcome
  tags           TEXT                         -- its request's, as it was sent
) STRICT;
CREATE INDEX reservations_pending ON reservations (worker_id, request_id) WHERE state = 'pending';
CREATE INDEX reservations_suspense ON reservations (id) WHERE state = 'suspense';
CREATE INDEX reservations_unknown ON reservations (coalesce(settled_at_ms, made_at_ms))
  WHERE state = 'suspense';
CREATE INDEX reservations_of_request ON reservations (request_id);
CREATE INDEX reservations_made ON reservations (made_at_ms);

-- What pruned reservations posted, so that balances can still be recomputed.
CREATE TABLE sums (
  minute_ms INTEGER NOT NULL,
  budgets   TEXT    NOT NULL,
  model     TEXT    NOT NULL,
  job_id    INTEGER NOT NULL,
  slots     TEXT    NOT NULL,  -- JSON: account id to the slot they counted in
  attempts  INTEGER NOT NULL,
  nusd      INTEGER NOT NULL,
  tokens    INTEGER NOT NULL,
  overruns  INTEGER NOT NULL,
  PRIMARY KEY (minute_ms, budgets, model, job_id, slots)
) STRICT, WITHOUT ROWID;

-- What was ever posted, summed as it is settled, by the quarter of an hour it was reserved in.
CREATE TABLE spent (
  quarter_ms INTEGER NOT NULL,
  job_id     INTEGER NOT NULL,
  model      TEXT    NOT NULL,
  attempts   INTEGER NOT NULL,
  nusd       INTEGER NOT NULL,
  tokens     INTEGER NOT NULL,
  PRIMARY KEY (quarter_ms, job_id, model)
) STRICT, WITHOUT ROWID;
CREATE TABLE spent_of_budgets (
  budget_id   INTEGER NOT NULL,
  quarter_ms  INTEGER NOT NULL,
  attempts    INTEGER NOT NULL,
  nusd        INTEGER NOT NULL,
  tokens      INTEGER NOT NULL,
  over_nusd   INTEGER NOT NULL,  -- more than was reserved
  over_tokens INTEGER NOT NULL,
  PRIMARY KEY (budget_id, quarter_ms)
) STRICT, WITHOUT ROWID;

-- The same by tags; of many values of a tag some are summed together.
CREATE TABLE spent_of_tags (
  quarter_ms INTEGER NOT NULL,
  tag        TEXT    NOT NULL,
  value      TEXT    NOT NULL,
  attempts   INTEGER NOT NULL,
  nusd       INTEGER NOT NULL,
  tokens     INTEGER NOT NULL,
  PRIMARY KEY (quarter_ms, tag, value)
) STRICT, WITHOUT ROWID;

-- How long answered attempts took, by the quarter of an hour in which they ended.
CREATE TABLE took (
  quarter_ms   INTEGER NOT NULL,
  model        TEXT    NOT NULL,
  bucket       INTEGER NOT NULL,  -- of how long: four to each doubling
  calls        INTEGER NOT NULL,
  nusd         INTEGER NOT NULL,
  ceiling_nusd INTEGER NOT NULL,
  PRIMARY KEY (quarter_ms, model, bucket)
) STRICT, WITHOUT ROWID;

-- How long calls took and what they cost, of budgets that take a risk; older rows are dropped.
CREATE TABLE lengths (
  id             INTEGER PRIMARY KEY,
  model          TEXT    NOT NULL,
  job_id         INTEGER NOT NULL,
  made_at_ms     INTEGER NOT NULL,
  ended_at_ms    INTEGER NOT NULL,
  nusd           INTEGER NOT NULL,
  tokens         INTEGER NOT NULL,
  ceiling_nusd   INTEGER NOT NULL,
  ceiling_tokens INTEGER NOT NULL
) STRICT;

-- What processes know together of a provider's rate limits, pauses and credit.
CREATE TABLE gates (
  provider TEXT    NOT NULL,
  model    TEXT    NOT NULL,
  is_front INTEGER NOT NULL,  -- of the provider, not of one model
  version  INTEGER NOT NULL,  -- counts changes
  state    TEXT    NOT NULL,  -- JSON
  PRIMARY KEY (provider, model, is_front)
) STRICT, WITHOUT ROWID;

-- Who was served how much, where tenants share. Old rows are dropped: they make no difference.
CREATE TABLE tenants (
  provider      TEXT    NOT NULL,  -- empty: all of them together
  priority      INTEGER NOT NULL,
  is_clock      INTEGER NOT NULL,  -- of the place, not of one tenant
  tenant        TEXT    NOT NULL,
  state         TEXT    NOT NULL,  -- JSON
  changed_at_ms INTEGER NOT NULL,
  PRIMARY KEY (provider, priority, is_clock, tenant)
) STRICT, WITHOUT ROWID;

-- What each transaction changed, for other processes; older rows are dropped.
CREATE TABLE changes (
  seq       INTEGER PRIMARY KEY AUTOINCREMENT,
  worker_id INTEGER NOT NULL,
  what      TEXT    NOT NULL  -- JSON: ids of budgets, lines, lanes, gates
) STRICT;

-- Requests in the order in which they ended, for those who wait for what others send.
CREATE TABLE ends (
  seq        INTEGER PRIMARY KEY AUTOINCREMENT,
  request_id INTEGER NOT NULL
) STRICT;

-- Prices of the user's own, in USD per million tokens: "IN/OUT".
CREATE TABLE prices (
  model TEXT PRIMARY KEY,
  price TEXT NOT NULL
) STRICT, WITHOUT ROWID;

-- What others of the package keep here, such as a gateway's tokens.
CREATE TABLE notes (
  kind TEXT NOT NULL,
  name TEXT NOT NULL,
  said TEXT NOT NULL,
  PRIMARY KEY (kind, name)
) STRICT, WITHOUT ROWID;

-- Longer texts of theirs, such as a gateway's batches; those of files are in pages.
CREATE TABLE papers (
  kind       TEXT    NOT NULL,
  name       TEXT    NOT NULL,
  owner      TEXT    NOT NULL,
  said       TEXT    NOT NULL,  -- JSON
  made_at_ms INTEGER NOT NULL,
  is_open    INTEGER NOT NULL,  -- somebody has work to do with it
  PRIMARY KEY (kind, name)
) STRICT, WITHOUT ROWID;
CREATE INDEX papers_of ON papers (kind, owner, made_at_ms, name);
CREATE INDEX papers_open ON papers (kind, made_at_ms, name) WHERE is_open = 1;
CREATE TABLE pages (
  kind   TEXT    NOT NULL,
  name   TEXT    NOT NULL,
  number INTEGER NOT NULL,
  said   TEXT    NOT NULL,
  PRIMARY KEY (kind, name, number)
) STRICT;

-- What hooks are to be told; what was told stays, so that it is told once.
CREATE TABLE outbox (
  id         INTEGER PRIMARY KEY,
  hook       TEXT    NOT NULL,  -- its name; empty: not to be told, but armed
  topic      TEXT    NOT NULL,
  event      TEXT,              -- JSON; NULL: it was told
  made_at_ms INTEGER NOT NULL,
  due_at_ms  INTEGER,           -- when to tell it next; NULL: not any more, or not yet
  tries      INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE UNIQUE INDEX outbox_by_topic ON outbox (hook, topic);
CREATE INDEX outbox_due ON outbox (due_at_ms) WHERE due_at_ms IS NOT NULL;
