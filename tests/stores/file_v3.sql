BEGIN TRANSACTION;
CREATE TABLE accounts (
  id             INTEGER PRIMARY KEY AUTOINCREMENT,  
  budget_id      INTEGER NOT NULL,
  position       INTEGER NOT NULL,
  cap            TEXT    NOT NULL,
  warned         INTEGER NOT NULL DEFAULT 0,  
  warned_slot_ms INTEGER NOT NULL DEFAULT 0,
  waiter         TEXT                         
) STRICT;
INSERT INTO "accounts" VALUES(1,1,0,'$0.0000001/day',0,0,NULL);
INSERT INTO "accounts" VALUES(2,1,1,'9 requests/hour',0,0,NULL);
INSERT INTO "accounts" VALUES(3,2,0,'$1',0,0,NULL);
CREATE TABLE balances (
  account_id INTEGER NOT NULL,
  slot_ms    INTEGER NOT NULL,
  posted     INTEGER NOT NULL,
  reserved   INTEGER NOT NULL CHECK (reserved >= 0),
  suspense   INTEGER NOT NULL CHECK (suspense >= 0),
  overrun    INTEGER NOT NULL,
  PRIMARY KEY (account_id, slot_ms)
) STRICT, WITHOUT ROWID;
INSERT INTO "balances" VALUES(1,1767225600000,7,90,30,0);
INSERT INTO "balances" VALUES(2,1767225600000,1,3,1,0);
CREATE TABLE budgets (
  id         INTEGER PRIMARY KEY,
  name       TEXT    NOT NULL UNIQUE,
  definition TEXT    NOT NULL,  
  is_paused  INTEGER NOT NULL DEFAULT 0
) STRICT;
INSERT INTO "budgets" VALUES(1,'team','{"spec": "$0.0000001/day, 9 requests/hour", "models": [], "tags": {}, "parent": null}',0);
INSERT INTO "budgets" VALUES(2,'other','{"spec": "$1", "models": [], "tags": {}, "parent": null}',0);
CREATE TABLE gates (
  provider TEXT    NOT NULL,
  model    TEXT    NOT NULL,
  is_front INTEGER NOT NULL,  
  version  INTEGER NOT NULL,  
  state    TEXT    NOT NULL,  
  PRIMARY KEY (provider, model, is_front)
) STRICT, WITHOUT ROWID;
CREATE TABLE jobs (
  id   INTEGER PRIMARY KEY,
  name TEXT NOT NULL UNIQUE
) STRICT;
INSERT INTO "jobs" VALUES(1,'');
CREATE TABLE lanes (
  id              INTEGER PRIMARY KEY AUTOINCREMENT,  
  worker_id       INTEGER NOT NULL,
  provider        TEXT    NOT NULL,
  budgets         TEXT    NOT NULL,  
  priority        INTEGER NOT NULL,
  may_wait        INTEGER NOT NULL,
  waiting         INTEGER NOT NULL DEFAULT 0,
  shortfall       TEXT,              
  shut_since_ms   INTEGER NOT NULL DEFAULT 0,
  parked_total_ms INTEGER NOT NULL DEFAULT 0,
  model           TEXT    NOT NULL DEFAULT ''
) STRICT;
INSERT INTO "lanes" VALUES(1,1,'p',',1,',10,1,2,NULL,0,0,'');
CREATE TABLE prices (
  model TEXT PRIMARY KEY,
  price TEXT NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE requests (
  id              INTEGER PRIMARY KEY,
  job_id          INTEGER NOT NULL,
  key             TEXT,
  digest          TEXT    NOT NULL,
  lane_id         INTEGER NOT NULL,
  state           TEXT    NOT NULL,  
  model           TEXT    NOT NULL,
  ceiling_nusd    INTEGER NOT NULL,
  ceiling_tokens  INTEGER NOT NULL,
  expected_nusd   INTEGER NOT NULL,
  submitted_at_ms INTEGER NOT NULL,
  not_before_ms   INTEGER,
  expires_at_ms   INTEGER,
  attempts        INTEGER NOT NULL DEFAULT 0,
  cost_nusd       INTEGER NOT NULL DEFAULT 0,
  parked_mark_ms  INTEGER NOT NULL,  
  parked_ms       INTEGER NOT NULL DEFAULT 0,
  reservation_id  INTEGER,
  is_delivered    INTEGER NOT NULL,  
  payload         TEXT,              
  error           TEXT,              
  ended_at_ms     INTEGER,
  input_tokens    INTEGER NOT NULL DEFAULT 0,  
  output_tokens   INTEGER NOT NULL DEFAULT 0   
) STRICT;
INSERT INTO "requests" VALUES(1,1,'k0','573b6703a5b5a8252a09b72011c20455',1,'succeeded','m',30,30,15,1767225600000,NULL,NULL,1,7,0,0,1,0,'{"body":{"model":"m","messages":[{"role":"user","content":"hi"}]},"key":"k0","priority":10}',NULL,1767225600000,0,0);
INSERT INTO "requests" VALUES(2,1,'k1','573b6703a5b5a8252a09b72011c20455',1,'failed','m',30,30,15,1767225600000,NULL,NULL,1,30,0,0,2,0,'{"body":{"model":"m","messages":[{"role":"user","content":"hi"}]},"key":"k1","priority":10}',NULL,1767225600000,0,0);
INSERT INTO "requests" VALUES(3,1,'k2','573b6703a5b5a8252a09b72011c20455',1,'delayed','m',30,30,15,1767225600000,1767225640000,NULL,1,0,0,0,3,0,'{"body":{"model":"m","messages":[{"role":"user","content":"hi"}]},"key":"k2","priority":10}',NULL,NULL,0,0);
INSERT INTO "requests" VALUES(4,1,'k3','573b6703a5b5a8252a09b72011c20455',1,'running','m',30,30,15,1767225600000,NULL,NULL,1,0,0,0,4,0,'{"body":{"model":"m","messages":[{"role":"user","content":"hi"}]},"key":"k3","priority":10}',NULL,NULL,0,0);
INSERT INTO "requests" VALUES(5,1,'k4','573b6703a5b5a8252a09b72011c20455',1,'running','m',30,30,15,1767225600000,NULL,NULL,1,0,0,0,5,0,'{"body":{"model":"m","messages":[{"role":"user","content":"hi"}]},"key":"k4","priority":10}',NULL,NULL,0,0);
INSERT INTO "requests" VALUES(6,1,'late','573b6703a5b5a8252a09b72011c20455',1,'queued','m',30,30,15,1767225600000,NULL,1767225650000,0,0,0,0,NULL,0,'{"body":{"model":"m","messages":[{"role":"user","content":"hi"}]},"key":"late","priority":10}',NULL,NULL,0,0);
INSERT INTO "requests" VALUES(7,1,NULL,'',1,'queued','m',1,1,0,1767225600000,NULL,NULL,0,0,0,0,NULL,1,'{"body":{"model":"m","messages":[{"role":"user","content":"hi"}]},"priority":10}',NULL,NULL,0,0);
CREATE TABLE reservations (
  id             INTEGER PRIMARY KEY,
  request_id     INTEGER NOT NULL,
  worker_id      INTEGER NOT NULL,
  job_id         INTEGER NOT NULL,
  budgets        TEXT    NOT NULL,  
  model          TEXT    NOT NULL,
  state          TEXT    NOT NULL,  
  made_at_ms     INTEGER NOT NULL,
  settled_at_ms  INTEGER,
  ceiling_nusd   INTEGER NOT NULL,
  ceiling_tokens INTEGER NOT NULL,
  nusd           INTEGER NOT NULL DEFAULT 0,
  tokens         INTEGER NOT NULL DEFAULT 0,
  is_assumed     INTEGER NOT NULL DEFAULT 0,  
  provider_id    TEXT,                        
  why            TEXT                         
) STRICT;
INSERT INTO "reservations" VALUES(1,1,1,1,',1,','m','posted',1767225600000,1767225600000,30,30,7,3,0,NULL,NULL);
INSERT INTO "reservations" VALUES(2,2,1,1,',1,','m','suspense',1767225600000,1767225600000,30,30,0,0,0,NULL,NULL);
INSERT INTO "reservations" VALUES(3,3,1,1,',1,','m','voided',1767225600000,1767225600000,30,30,0,0,0,NULL,NULL);
INSERT INTO "reservations" VALUES(4,4,1,1,',1,','m','pending',1767225600000,NULL,30,30,0,0,0,NULL,NULL);
INSERT INTO "reservations" VALUES(5,5,1,1,',1,','m','pending',1767225600000,NULL,30,30,0,0,0,NULL,NULL);
CREATE TABLE responses (
  request_id INTEGER PRIMARY KEY,
  response   TEXT NOT NULL  
) STRICT;
INSERT INTO "responses" VALUES(1,'{"body":{"n":1},"status_code":200,"key":"k0","index":null,"request_id":null,"usage":[1,2,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0],"cost_nusd":0,"is_estimated":false,"attempts":1,"parked_ms":0,"waited_ms":0,"model":"","metadata":null,"instead_of":null}');
CREATE TABLE sums (
  minute_ms INTEGER NOT NULL,
  budgets   TEXT    NOT NULL,
  model     TEXT    NOT NULL,
  job_id    INTEGER NOT NULL,
  slots     TEXT    NOT NULL,  
  attempts  INTEGER NOT NULL,
  nusd      INTEGER NOT NULL,
  tokens    INTEGER NOT NULL,
  overruns  INTEGER NOT NULL,
  PRIMARY KEY (minute_ms, budgets, model, job_id, slots)
) STRICT, WITHOUT ROWID;
CREATE TABLE tallies (
  job_id INTEGER NOT NULL,
  state  TEXT    NOT NULL,
  count  INTEGER NOT NULL,
  PRIMARY KEY (job_id, state)
) STRICT, WITHOUT ROWID;
INSERT INTO "tallies" VALUES(1,'failed',1);
INSERT INTO "tallies" VALUES(1,'queued',3);
INSERT INTO "tallies" VALUES(1,'running',2);
INSERT INTO "tallies" VALUES(1,'succeeded',1);
CREATE TABLE workers (
  id         INTEGER PRIMARY KEY AUTOINCREMENT,  
  host       TEXT    NOT NULL,  
  pid        INTEGER NOT NULL,
  started    TEXT    NOT NULL,  
  seen_at_ms INTEGER NOT NULL,
  is_lost    INTEGER NOT NULL DEFAULT 0  
) STRICT;
INSERT INTO "workers" VALUES(1,'a machine that is gone',7,'1',1767225600000,0);
CREATE INDEX accounts_of_budget ON accounts (budget_id, position);
CREATE INDEX lanes_of_worker ON lanes (worker_id);
CREATE UNIQUE INDEX requests_by_key ON requests (job_id, key) WHERE key IS NOT NULL;
CREATE INDEX requests_queued ON requests (lane_id, id) WHERE state = 'queued';
CREATE INDEX requests_delayed ON requests (not_before_ms) WHERE state = 'delayed';
CREATE INDEX requests_expiring ON requests (expires_at_ms)
  WHERE expires_at_ms IS NOT NULL AND state IN ('queued', 'delayed');
CREATE INDEX requests_running ON requests (id) WHERE state = 'running';
CREATE INDEX requests_undelivered ON requests (job_id, id)
  WHERE is_delivered = 0 AND state IN ('succeeded', 'failed', 'cancelled', 'expired');
CREATE INDEX requests_ended ON requests (lane_id, is_delivered, coalesce(ended_at_ms, submitted_at_ms))
  WHERE state IN ('succeeded', 'failed', 'cancelled', 'expired');
CREATE INDEX reservations_open ON reservations (worker_id) WHERE state IN ('pending', 'suspense');
CREATE INDEX reservations_suspense ON reservations (id) WHERE state = 'suspense';
CREATE INDEX reservations_unknown ON reservations (coalesce(settled_at_ms, made_at_ms))
  WHERE state = 'suspense';
CREATE INDEX reservations_of_request ON reservations (request_id);
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('accounts',3);
INSERT INTO "sqlite_sequence" VALUES('workers',1);
INSERT INTO "sqlite_sequence" VALUES('lanes',1);
COMMIT;