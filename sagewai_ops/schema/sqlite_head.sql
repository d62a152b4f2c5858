-- The schema of a home's SQLite database as a fresh Sagewai 1.0.1 home has it: 55 tables.
-- `init`, `db upgrade` and `db check` read this file. The comment after a table names the revision
-- that added it; columns of later revisions have a comment of their own.

CREATE TABLE workflow_runs ( -- 001_initial
  id TEXT NOT NULL,
  project_id TEXT DEFAULT 'default' NOT NULL,
  workflow_name TEXT NOT NULL,
  run_id TEXT NOT NULL,
  status TEXT DEFAULT 'pending' NOT NULL,
  data JSON NOT NULL,
  owner_id TEXT,
  idempotency_key VARCHAR(255),
  input JSON NOT NULL,
  output JSON,
  error TEXT,
  steps_completed INTEGER DEFAULT '0' NOT NULL,
  steps_total INTEGER,
  priority INTEGER DEFAULT '0',
  created_at DATETIME DEFAULT CURRENT_TIMESTAMP NOT NULL,
  updated_at DATETIME DEFAULT CURRENT_TIMESTAMP NOT NULL,
  target_pool TEXT,
  target_labels JSON,
  target_worker_id TEXT,
  org_id TEXT,
  target_model TEXT,
  input_encrypted BOOLEAN DEFAULT 'false' NOT NULL,
  output_encrypted BOOLEAN DEFAULT 'false' NOT NULL,
  requires_sandbox_mode TEXT DEFAULT 'none' NOT NULL, -- 002_sandbox_requirements
  requires_image TEXT DEFAULT 'ghcr.io/sagewai/sandbox-base:0.0.0-dev' NOT NULL, -- 002_sandbox_requirements
  requires_variant TEXT, -- 002_sandbox_requirements
  requires_network_policy TEXT DEFAULT 'none' NOT NULL, -- 002_sandbox_requirements
  security_profile_ref TEXT, -- 003_sealed
  effective_env_keys JSON NOT NULL, -- 003_sealed
  effective_secret_keys JSON NOT NULL, -- 003_sealed
  revoked_at DATETIME, -- 004_sealed_revocations
  revoke_reason TEXT, -- 004_sealed_revocations
  execution_mode TEXT DEFAULT 'bare' NOT NULL, -- 005_execution_mode
  artifact_destination JSON, -- 006_artifact_destination
  replay_of_run_id TEXT, -- 006_replay_snapshots
  replay_from_step INTEGER, -- 006_replay_snapshots
  code_hash TEXT, -- 006_replay_snapshots
  directive_chain JSON NOT NULL, -- 008_directives
  estimated_cost_usd FLOAT, -- 008_directives
  replay_re_evaluate_directives BOOLEAN DEFAULT 'false' NOT NULL, -- 008_directives
  execution_mode_override TEXT, -- 008_directives
  identity_from TEXT, -- 008_directives
  PRIMARY KEY (id)
);
CREATE UNIQUE INDEX idx_workflow_runs_idempotency_key
  ON workflow_runs (idempotency_key) WHERE idempotency_key IS NOT NULL;
CREATE INDEX idx_workflow_runs_name_status ON workflow_runs (workflow_name, status);
CREATE INDEX idx_workflow_runs_project_id ON workflow_runs (project_id);
CREATE INDEX idx_workflow_runs_replay_of ON workflow_runs (replay_of_run_id);
CREATE INDEX idx_workflow_runs_run_id ON workflow_runs (run_id);
CREATE INDEX idx_workflow_runs_status ON workflow_runs (status);
CREATE INDEX idx_workflow_runs_updated_at ON workflow_runs (updated_at);
CREATE INDEX idx_workflow_runs_workflow_name ON workflow_runs (workflow_name);

CREATE TABLE sessions ( -- 001_initial
  session_id TEXT NOT NULL,
  project_id TEXT DEFAULT 'default' NOT NULL,
  agent_name TEXT NOT NULL,
  messages JSON NOT NULL,
  summary TEXT,
  memory_keys JSON NOT NULL,
  created_at DATETIME DEFAULT CURRENT_TIMESTAMP NOT NULL,
  updated_at DATETIME DEFAULT CURRENT_TIMESTAMP NOT NULL,
  PRIMARY KEY (session_id, project_id)
);
CREATE INDEX idx_sessions_agent ON sessions (agent_name);
CREATE INDEX idx_sessions_project_id ON sessions (project_id);
CREATE INDEX idx_sessions_updated ON sessions (updated_at);

CREATE TABLE sealed_revocations ( -- 004_sealed_revocations
  id BIGINT NOT NULL,
  profile_id TEXT NOT NULL,
  secret_key TEXT NOT NULL,
  revoked_at DATETIME DEFAULT CURRENT_TIMESTAMP NOT NULL,
  revoked_by TEXT,
  reason TEXT NOT NULL,
  hard BOOLEAN DEFAULT 'false' NOT NULL,
  lifted_at DATETIME,
  lifted_by TEXT,
  PRIMARY KEY (id)
);
CREATE UNIQUE INDEX idx_sealed_revocations_active
  ON sealed_revocations (profile_id, secret_key) WHERE lifted_at IS NULL;
CREATE INDEX idx_sealed_revocations_profile ON sealed_revocations (profile_id);

CREATE TABLE agent_runs ( -- 001_initial
  run_id TEXT NOT NULL,
  project_id TEXT DEFAULT 'default',
  agent_name TEXT NOT NULL,
  status TEXT DEFAULT 'completed' NOT NULL,
  input_text TEXT DEFAULT '' NOT NULL,
  output_text TEXT DEFAULT '' NOT NULL,
  total_tokens INTEGER DEFAULT '0' NOT NULL,
  input_tokens INTEGER DEFAULT '0' NOT NULL,
  output_tokens INTEGER DEFAULT '0' NOT NULL,
  cost_usd DOUBLE DEFAULT '0.0' NOT NULL,
  model TEXT DEFAULT '' NOT NULL,
  duration_ms INTEGER DEFAULT '0' NOT NULL,
  tool_calls JSON,
  metadata JSON,
  started_at DOUBLE DEFAULT '0.0' NOT NULL,
  completed_at DOUBLE DEFAULT '0.0' NOT NULL,
  error TEXT,
  checkpoint_run_id TEXT,
  run_type TEXT DEFAULT 'standalone' NOT NULL,
  parent_workflow_run_id TEXT,
  created_at DATETIME DEFAULT CURRENT_TIMESTAMP NOT NULL,
  PRIMARY KEY (run_id)
);
CREATE INDEX idx_agent_runs_agent_name ON agent_runs (agent_name);
CREATE INDEX idx_agent_runs_model ON agent_runs (model);
CREATE INDEX idx_agent_runs_parent_wf ON agent_runs (parent_workflow_run_id);
CREATE INDEX idx_agent_runs_project_agent ON agent_runs (project_id, agent_name);
CREATE INDEX idx_agent_runs_project_id ON agent_runs (project_id);
CREATE INDEX idx_agent_runs_run_type ON agent_runs (run_type);
CREATE INDEX idx_agent_runs_started_at ON agent_runs (started_at);
CREATE INDEX idx_agent_runs_status ON agent_runs (status);

CREATE TABLE playground_agents ( -- 001_initial
  name VARCHAR(255) NOT NULL,
  project_id TEXT DEFAULT 'default' NOT NULL,
  spec TEXT NOT NULL,
  created_at DATETIME DEFAULT CURRENT_TIMESTAMP NOT NULL,
  updated_at DATETIME DEFAULT CURRENT_TIMESTAMP NOT NULL,
  PRIMARY KEY (name)
);
CREATE INDEX ix_playground_agents_project_id ON playground_agents (project_id);

CREATE TABLE provider ( -- 011_tenant_provider
  id TEXT NOT NULL,
  project_id TEXT,
  provider_name TEXT NOT NULL,
  is_default BOOLEAN DEFAULT 'false' NOT NULL,
  data JSON NOT NULL,
  created_at DATETIME DEFAULT CURRENT_TIMESTAMP NOT NULL,
  updated_at DATETIME DEFAULT CURRENT_TIMESTAMP NOT NULL,
  PRIMARY KEY (id)
);
CREATE INDEX ix_provider_project_id ON provider (project_id);
CREATE UNIQUE INDEX ux_provider_global_name ON provider (provider_name) WHERE project_id IS NULL;
CREATE UNIQUE INDEX ux_provider_proj_name
  ON provider (project_id, provider_name) WHERE project_id IS NOT NULL;

CREATE TABLE agent ( -- 012_tenant_agent
  id TEXT NOT NULL,
  project_id TEXT,
  name TEXT NOT NULL,
  spec JSON NOT NULL,
  created_at DATETIME DEFAULT CURRENT_TIMESTAMP NOT NULL,
  updated_at DATETIME DEFAULT CURRENT_TIMESTAMP NOT NULL,
  PRIMARY KEY (id)
);
CREATE INDEX ix_agent_project_id ON agent (project_id);
CREATE UNIQUE INDEX ux_agent_global_name ON agent (name) WHERE project_id IS NULL;
CREATE UNIQUE INDEX ux_agent_proj_name ON agent (project_id, name) WHERE project_id IS NOT NULL;

CREATE TABLE connection ( -- 014_tenant_connection
  id TEXT NOT NULL,
  project_id TEXT,
  protocol TEXT NOT NULL,
  display_name TEXT NOT NULL,
  tags JSON NOT NULL,
  credentials_backend JSON,
  status TEXT DEFAULT 'pending' NOT NULL,
  last_tested_at TEXT,
  last_test_ok BOOLEAN,
  is_default BOOLEAN DEFAULT 'false' NOT NULL,
  last_error JSON,
  protocol_data JSON NOT NULL,
  created_at DATETIME DEFAULT CURRENT_TIMESTAMP NOT NULL,
  updated_at DATETIME DEFAULT CURRENT_TIMESTAMP NOT NULL,
  PRIMARY KEY (id)
);
CREATE INDEX ix_connection_project_id ON connection (project_id);
CREATE INDEX ix_connection_protocol ON connection (protocol);
CREATE UNIQUE INDEX ux_connection_global_name
  ON connection (protocol, display_name) WHERE project_id IS NULL;
CREATE UNIQUE INDEX ux_connection_proj_name
  ON connection (project_id, protocol, display_name) WHERE project_id IS NOT NULL;

CREATE TABLE admin_resources ( -- 015_admin_resources
  kind TEXT NOT NULL,
  resource_id TEXT NOT NULL,
  project_id TEXT,
  name TEXT,
  data JSON NOT NULL,
  created_at DATETIME DEFAULT CURRENT_TIMESTAMP NOT NULL,
  updated_at DATETIME DEFAULT CURRENT_TIMESTAMP NOT NULL,
  PRIMARY KEY (kind, resource_id)
);
CREATE INDEX ix_admin_resources_kind ON admin_resources (kind);
CREATE INDEX ix_admin_resources_project_id ON admin_resources (project_id);
CREATE UNIQUE INDEX ux_admin_resources_kind_proj_name
  ON admin_resources (kind, project_id, name) WHERE name IS NOT NULL;

CREATE TABLE rate_limits ( -- 016_rate_limits
  bucket_key TEXT NOT NULL,
  window_start BIGINT NOT NULL,
  count INTEGER DEFAULT 0 NOT NULL,
  PRIMARY KEY (bucket_key, window_start)
);
CREATE INDEX ix_rate_limits_window_start ON rate_limits (window_start);

CREATE TABLE api_token ( -- 017_api_tokens
  id TEXT NOT NULL,
  org_id TEXT NOT NULL,
  project_id TEXT,
  subject_user_id TEXT NOT NULL,
  token_hash TEXT NOT NULL,
  scopes TEXT NOT NULL,
  name TEXT,
  expires_at DATETIME,
  last_used_at DATETIME,
  created_at DATETIME DEFAULT CURRENT_TIMESTAMP NOT NULL,
  revoked_at DATETIME,
  PRIMARY KEY (id)
);
CREATE INDEX ix_api_token_org_project ON api_token (org_id, project_id);
CREATE UNIQUE INDEX ux_api_token_hash ON api_token (token_hash);
CREATE UNIQUE INDEX ux_api_token_org_name
  ON api_token (org_id, name) WHERE project_id IS NULL AND name IS NOT NULL;
CREATE UNIQUE INDEX ux_api_token_org_proj_name
  ON api_token (org_id, project_id, name) WHERE project_id IS NOT NULL AND name IS NOT NULL;

CREATE TABLE cost_records ( -- 001_initial
  id INTEGER NOT NULL,
  project_id TEXT DEFAULT 'default' NOT NULL,
  agent_name VARCHAR(255) NOT NULL,
  model VARCHAR(255) NOT NULL,
  cost_usd DOUBLE NOT NULL,
  tokens INTEGER NOT NULL,
  created_at DATETIME DEFAULT CURRENT_TIMESTAMP NOT NULL,
  PRIMARY KEY (id)
);
CREATE INDEX ix_cost_records_agent ON cost_records (agent_name);
CREATE INDEX ix_cost_records_created ON cost_records (created_at);
CREATE INDEX ix_cost_records_model ON cost_records (model);
CREATE INDEX ix_cost_records_project_id ON cost_records (project_id);

CREATE TABLE guardrail_events ( -- 001_initial
  id INTEGER NOT NULL,
  project_id TEXT DEFAULT 'default' NOT NULL,
  agent_name VARCHAR(255) NOT NULL,
  event_type VARCHAR(50) NOT NULL,
  entity_type VARCHAR(50),
  action VARCHAR(50),
  detail TEXT,
  created_at DATETIME DEFAULT CURRENT_TIMESTAMP NOT NULL,
  PRIMARY KEY (id)
);
CREATE INDEX ix_guardrail_events_agent ON guardrail_events (agent_name);
CREATE INDEX ix_guardrail_events_created ON guardrail_events (created_at);
CREATE INDEX ix_guardrail_events_project_id ON guardrail_events (project_id);
CREATE INDEX ix_guardrail_events_type ON guardrail_events (event_type);

CREATE TABLE budget_limits ( -- 001_initial
  id INTEGER NOT NULL,
  project_id TEXT DEFAULT 'default' NOT NULL,
  agent_name VARCHAR(255) NOT NULL,
  max_daily_usd DOUBLE NOT NULL,
  max_monthly_usd DOUBLE NOT NULL,
  action VARCHAR(20) DEFAULT 'warn' NOT NULL,
  fallback_chain TEXT,
  created_at DATETIME DEFAULT CURRENT_TIMESTAMP NOT NULL,
  updated_at DATETIME DEFAULT CURRENT_TIMESTAMP NOT NULL,
  PRIMARY KEY (id)
);
CREATE UNIQUE INDEX ix_budget_limits_project_agent ON budget_limits (project_id, agent_name);

CREATE TABLE budget_spend ( -- 001_initial
  id INTEGER NOT NULL,
  project_id TEXT DEFAULT 'default' NOT NULL,
  agent_name VARCHAR(255) NOT NULL,
  cost_usd DOUBLE NOT NULL,
  created_at DATETIME DEFAULT CURRENT_TIMESTAMP NOT NULL,
  PRIMARY KEY (id)
);
CREATE INDEX ix_budget_spend_agent ON budget_spend (agent_name);
CREATE INDEX ix_budget_spend_created ON budget_spend (created_at);
CREATE INDEX ix_budget_spend_project_id ON budget_spend (project_id);

CREATE TABLE guardrail_configs ( -- 001_initial
  id INTEGER NOT NULL,
  project_id TEXT DEFAULT 'default' NOT NULL,
  agent_name VARCHAR(255) NOT NULL,
  guardrail_type VARCHAR(50) NOT NULL,
  enabled BOOLEAN DEFAULT 'true' NOT NULL,
  config TEXT,
  created_at DATETIME DEFAULT CURRENT_TIMESTAMP NOT NULL,
  updated_at DATETIME DEFAULT CURRENT_TIMESTAMP NOT NULL,
  PRIMARY KEY (id)
);
CREATE UNIQUE INDEX ix_guardrail_configs_project_agent_type
  ON guardrail_configs (project_id, agent_name, guardrail_type);

CREATE TABLE eval_datasets ( -- 001_initial
  id INTEGER NOT NULL,
  name VARCHAR(255) NOT NULL,
  description TEXT,
  cases TEXT NOT NULL,
  created_at DATETIME DEFAULT CURRENT_TIMESTAMP NOT NULL,
  PRIMARY KEY (id),
  UNIQUE (name)
);

CREATE TABLE users ( -- 001_initial
  id TEXT NOT NULL,
  email VARCHAR(255) NOT NULL,
  password_hash TEXT,
  display_name VARCHAR(255) NOT NULL,
  avatar_url TEXT,
  oauth_provider VARCHAR(50),
  oauth_id VARCHAR(255),
  is_active BOOLEAN NOT NULL,
  created_at DATETIME DEFAULT CURRENT_TIMESTAMP NOT NULL,
  PRIMARY KEY (id),
  UNIQUE (email)
);
CREATE UNIQUE INDEX ix_users_email ON users (email);
CREATE INDEX ix_users_oauth ON users (oauth_provider, oauth_id);

CREATE TABLE saved_workflows ( -- 001_initial
  id TEXT NOT NULL,
  project_id TEXT DEFAULT 'default' NOT NULL,
  name TEXT NOT NULL,
  description TEXT DEFAULT '' NOT NULL,
  yaml_content TEXT NOT NULL,
  version INTEGER DEFAULT '1' NOT NULL,
  is_active BOOLEAN DEFAULT 'true' NOT NULL,
  created_by TEXT,
  created_at DATETIME DEFAULT CURRENT_TIMESTAMP NOT NULL,
  updated_at DATETIME DEFAULT CURRENT_TIMESTAMP NOT NULL,
  PRIMARY KEY (id)
);
CREATE INDEX idx_saved_workflows_name ON saved_workflows (project_id, name);
CREATE INDEX idx_saved_workflows_project ON saved_workflows (project_id);

CREATE TABLE agent_access_tokens ( -- 001_initial
  token_id TEXT NOT NULL,
  project_id TEXT DEFAULT 'default' NOT NULL,
  token_hash TEXT NOT NULL,
  token_suffix VARCHAR(4) DEFAULT '' NOT NULL,
  agent_name TEXT NOT NULL,
  grantor_id TEXT NOT NULL,
  scopes JSON NOT NULL,
  status TEXT DEFAULT 'active' NOT NULL,
  single_use BOOLEAN DEFAULT 'false' NOT NULL,
  expires_at DATETIME NOT NULL,
  used_at DATETIME,
  created_at DATETIME DEFAULT CURRENT_TIMESTAMP NOT NULL,
  PRIMARY KEY (token_id),
  UNIQUE (token_hash)
);
CREATE INDEX idx_access_tokens_agent ON agent_access_tokens (agent_name);
CREATE INDEX idx_access_tokens_expires ON agent_access_tokens (expires_at);
CREATE UNIQUE INDEX idx_access_tokens_hash ON agent_access_tokens (token_hash);
CREATE INDEX idx_access_tokens_project_id ON agent_access_tokens (project_id);
CREATE INDEX idx_access_tokens_status ON agent_access_tokens (status);

CREATE TABLE connector_triggers ( -- 001_initial
  id VARCHAR(36) NOT NULL,
  project_id TEXT DEFAULT 'default' NOT NULL,
  source VARCHAR(100) NOT NULL,
  strategy VARCHAR(20) NOT NULL,
  poll_interval_seconds INTEGER,
  filter_json JSON NOT NULL,
  target VARCHAR(200) NOT NULL,
  action VARCHAR(50) NOT NULL,
  context_json JSON NOT NULL,
  enabled BOOLEAN DEFAULT 'true' NOT NULL,
  created_at DATETIME DEFAULT CURRENT_TIMESTAMP NOT NULL,
  updated_at DATETIME DEFAULT CURRENT_TIMESTAMP NOT NULL,
  PRIMARY KEY (id)
);
CREATE INDEX ix_connector_triggers_project_id ON connector_triggers (project_id);

CREATE TABLE connector_credentials ( -- 001_initial
  id VARCHAR(100) NOT NULL,
  project_id TEXT DEFAULT 'default' NOT NULL,
  connector_name VARCHAR(255) NOT NULL,
  display_name VARCHAR(255) DEFAULT '' NOT NULL,
  config JSON NOT NULL,
  status VARCHAR(50) DEFAULT 'not_configured' NOT NULL,
  access_token TEXT,
  refresh_token TEXT,
  token_type VARCHAR(50),
  expires_at DATETIME,
  scope TEXT,
  created_at DATETIME DEFAULT CURRENT_TIMESTAMP NOT NULL,
  updated_at DATETIME DEFAULT CURRENT_TIMESTAMP NOT NULL,
  PRIMARY KEY (id)
);
CREATE UNIQUE INDEX ix_connector_credentials_project_connector
  ON connector_credentials (project_id, connector_name);
CREATE INDEX ix_connector_credentials_project_id ON connector_credentials (project_id);

CREATE TABLE custom_connectors ( -- 001_initial
  name VARCHAR(100) NOT NULL,
  project_id TEXT DEFAULT 'default' NOT NULL,
  display_name VARCHAR(200) NOT NULL,
  category VARCHAR(100) DEFAULT 'custom' NOT NULL,
  description TEXT DEFAULT '' NOT NULL,
  auth_type VARCHAR(20) DEFAULT 'api_key' NOT NULL,
  auth_fields_json JSON NOT NULL,
  mcp_command_json JSON NOT NULL,
  docs_url TEXT,
  agent_description TEXT DEFAULT '' NOT NULL,
  example_prompt TEXT DEFAULT '' NOT NULL,
  oauth_authorize_url TEXT,
  oauth_token_url TEXT,
  oauth_scopes_json JSON,
  supports_webhook BOOLEAN DEFAULT 'false' NOT NULL,
  supports_listener BOOLEAN DEFAULT 'false' NOT NULL,
  supports_poller BOOLEAN DEFAULT 'false' NOT NULL,
  created_at DATETIME DEFAULT CURRENT_TIMESTAMP NOT NULL,
  updated_at DATETIME DEFAULT CURRENT_TIMESTAMP NOT NULL,
  PRIMARY KEY (name)
);
CREATE INDEX ix_custom_connectors_project_id ON custom_connectors (project_id);

CREATE TABLE connector_cursors ( -- 001_initial
  id INTEGER NOT NULL,
  project_id TEXT DEFAULT 'default' NOT NULL,
  connector_name VARCHAR(100) NOT NULL,
  channel VARCHAR(255) NOT NULL,
  cursor_value TEXT NOT NULL,
  updated_at DATETIME DEFAULT CURRENT_TIMESTAMP NOT NULL,
  PRIMARY KEY (id)
);
CREATE UNIQUE INDEX ix_connector_cursors_project_connector_channel
  ON connector_cursors (project_id, connector_name, channel);
CREATE INDEX ix_connector_cursors_project_id ON connector_cursors (project_id);

CREATE TABLE context_documents ( -- 001_initial
  id TEXT NOT NULL,
  scope TEXT NOT NULL,
  scope_id TEXT NOT NULL,
  project_id TEXT DEFAULT 'default' NOT NULL,
  title TEXT NOT NULL,
  source TEXT DEFAULT 'upload' NOT NULL,
  source_uri TEXT,
  mime_type TEXT DEFAULT 'text/plain' NOT NULL,
  file_size_bytes INTEGER DEFAULT '0' NOT NULL,
  chunk_count INTEGER DEFAULT '0' NOT NULL,
  status TEXT DEFAULT 'pending' NOT NULL,
  confidence FLOAT DEFAULT '1.0' NOT NULL,
  freshness_at DATETIME DEFAULT CURRENT_TIMESTAMP NOT NULL,
  metadata JSON NOT NULL,
  created_at DATETIME DEFAULT CURRENT_TIMESTAMP NOT NULL,
  updated_at DATETIME DEFAULT CURRENT_TIMESTAMP NOT NULL,
  tags JSON NOT NULL,
  PRIMARY KEY (id)
);
CREATE INDEX idx_ctx_docs_project ON context_documents (project_id);
CREATE INDEX idx_ctx_docs_scope ON context_documents (scope, scope_id);
CREATE INDEX idx_ctx_docs_source ON context_documents (source);
CREATE INDEX idx_ctx_docs_status ON context_documents (status);
CREATE INDEX idx_ctx_docs_tags ON context_documents (tags);

CREATE TABLE harness_policies ( -- 001_initial
  id TEXT NOT NULL,
  name TEXT NOT NULL,
  description TEXT DEFAULT '' NOT NULL,
  org_id TEXT,
  team_id TEXT,
  project_id TEXT,
  user_id TEXT,
  priority INTEGER DEFAULT '0' NOT NULL,
  tier_overrides JSON NOT NULL,
  blocked_models JSON NOT NULL,
  allowed_models JSON NOT NULL,
  max_tier TEXT,
  force_model TEXT,
  allow_override BOOLEAN DEFAULT 'true' NOT NULL,
  enabled BOOLEAN DEFAULT 'true' NOT NULL,
  created_at DATETIME DEFAULT CURRENT_TIMESTAMP NOT NULL,
  updated_at DATETIME DEFAULT CURRENT_TIMESTAMP NOT NULL,
  PRIMARY KEY (id)
);
CREATE INDEX ix_harness_policies_scope ON harness_policies (org_id, team_id, project_id, user_id);

CREATE TABLE harness_keys ( -- 001_initial
  id TEXT NOT NULL,
  key_hash TEXT NOT NULL,
  key_suffix TEXT NOT NULL,
  name TEXT,
  user_id TEXT NOT NULL,
  org_id TEXT DEFAULT 'default' NOT NULL,
  team_id TEXT,
  project_id TEXT,
  allowed_models JSON NOT NULL,
  max_budget_daily_usd FLOAT,
  max_budget_monthly_usd FLOAT,
  enabled BOOLEAN DEFAULT 'true' NOT NULL,
  created_at DATETIME DEFAULT CURRENT_TIMESTAMP NOT NULL,
  expires_at DATETIME,
  PRIMARY KEY (id),
  UNIQUE (key_hash)
);
CREATE UNIQUE INDEX ix_harness_keys_key_hash ON harness_keys (key_hash);
CREATE INDEX ix_harness_keys_org_id ON harness_keys (org_id);
CREATE INDEX ix_harness_keys_user_id ON harness_keys (user_id);

CREATE TABLE harness_audit ( -- 001_initial
  id TEXT NOT NULL,
  timestamp DATETIME DEFAULT CURRENT_TIMESTAMP NOT NULL,
  event_type TEXT NOT NULL,
  user_id TEXT,
  org_id TEXT DEFAULT 'default' NOT NULL,
  details JSON NOT NULL,
  PRIMARY KEY (id)
);
CREATE INDEX ix_harness_audit_event_type ON harness_audit (event_type);
CREATE INDEX ix_harness_audit_timestamp ON harness_audit (timestamp);

CREATE TABLE notification_channels ( -- 001_initial
  id INTEGER NOT NULL,
  project_id TEXT DEFAULT 'default' NOT NULL,
  channel_type TEXT NOT NULL,
  enabled BOOLEAN DEFAULT 'true' NOT NULL,
  config JSON DEFAULT '{}' NOT NULL,
  created_at DATETIME DEFAULT CURRENT_TIMESTAMP NOT NULL,
  updated_at DATETIME DEFAULT CURRENT_TIMESTAMP NOT NULL,
  PRIMARY KEY (id),
  UNIQUE (project_id, channel_type)
);

CREATE TABLE notification_triggers ( -- 001_initial
  id INTEGER NOT NULL,
  project_id TEXT DEFAULT 'default' NOT NULL,
  "trigger" TEXT NOT NULL,
  channel_type TEXT NOT NULL,
  enabled BOOLEAN DEFAULT 'true' NOT NULL,
  created_at DATETIME DEFAULT CURRENT_TIMESTAMP NOT NULL,
  PRIMARY KEY (id),
  UNIQUE (project_id, "trigger", channel_type)
);

CREATE TABLE notification_history ( -- 001_initial
  id INTEGER NOT NULL,
  project_id TEXT DEFAULT 'default' NOT NULL,
  "trigger" TEXT NOT NULL,
  title TEXT NOT NULL,
  body TEXT,
  severity TEXT DEFAULT 'info' NOT NULL,
  agent_name TEXT,
  channel_type TEXT NOT NULL,
  delivered BOOLEAN DEFAULT 'false' NOT NULL,
  error TEXT,
  created_at DATETIME DEFAULT CURRENT_TIMESTAMP NOT NULL,
  PRIMARY KEY (id)
);
CREATE INDEX ix_notification_history_created_at ON notification_history (created_at);
CREATE INDEX ix_notification_history_project_id ON notification_history (project_id);
CREATE INDEX ix_notification_history_trigger ON notification_history ("trigger");

CREATE TABLE sealed_audit_events ( -- 003_sealed
  id INTEGER NOT NULL,
  event_type TEXT NOT NULL,
  actor_type TEXT NOT NULL,
  actor_id TEXT,
  profile_id TEXT,
  secret_key TEXT,
  run_id TEXT,
  project_id TEXT,
  details JSON NOT NULL,
  created_at DATETIME DEFAULT CURRENT_TIMESTAMP NOT NULL,
  PRIMARY KEY (id)
);
CREATE INDEX idx_sealed_audit_profile ON sealed_audit_events (profile_id, created_at);
CREATE INDEX idx_sealed_audit_recent ON sealed_audit_events (event_type, created_at);
CREATE INDEX idx_sealed_audit_run
  ON sealed_audit_events (run_id, created_at) WHERE run_id IS NOT NULL;

CREATE TABLE directive_evaluations ( -- 008_directives
  id INTEGER NOT NULL,
  event_type TEXT NOT NULL,
  decision_id TEXT,
  run_id TEXT NOT NULL,
  project_id TEXT,
  workflow_name TEXT NOT NULL,
  policy_id TEXT,
  signal_kind TEXT,
  severity TEXT,
  details JSON NOT NULL,
  created_at DATETIME DEFAULT CURRENT_TIMESTAMP NOT NULL,
  PRIMARY KEY (id)
);
CREATE INDEX idx_directive_eval_decision
  ON directive_evaluations (decision_id, created_at) WHERE decision_id IS NOT NULL;
CREATE INDEX idx_directive_eval_recent ON directive_evaluations (event_type, created_at);
CREATE INDEX idx_directive_eval_run ON directive_evaluations (run_id, created_at);

CREATE TABLE pending_directive_approvals ( -- 008_directives
  id INTEGER NOT NULL,
  decision_id TEXT NOT NULL,
  run_id TEXT NOT NULL,
  project_id TEXT,
  workflow_name TEXT NOT NULL,
  policy_id TEXT NOT NULL,
  triggering_signal JSON NOT NULL,
  proposed_action JSON NOT NULL,
  requested_at DATETIME DEFAULT CURRENT_TIMESTAMP NOT NULL,
  status TEXT DEFAULT 'pending' NOT NULL,
  decided_at DATETIME,
  decided_by TEXT,
  operator_note TEXT,
  expires_at DATETIME NOT NULL,
  PRIMARY KEY (id),
  UNIQUE (decision_id)
);
CREATE INDEX idx_directive_approvals_pending
  ON pending_directive_approvals (status, requested_at) WHERE status = 'pending';
CREATE INDEX idx_directive_approvals_run ON pending_directive_approvals (run_id, requested_at);

CREATE TABLE org ( -- 009_tenancy_identity
  id TEXT NOT NULL,
  name TEXT NOT NULL,
  slug TEXT NOT NULL,
  contact_email TEXT,
  timezone TEXT NOT NULL,
  settings JSON NOT NULL,
  master_key_ref TEXT,
  created_at DATETIME DEFAULT CURRENT_TIMESTAMP NOT NULL,
  PRIMARY KEY (id),
  UNIQUE (slug)
);

CREATE TABLE workers ( -- 001_initial
  worker_id TEXT NOT NULL,
  pool TEXT DEFAULT 'default' NOT NULL,
  labels JSON NOT NULL,
  project_id TEXT,
  status TEXT DEFAULT 'active' NOT NULL,
  max_concurrent INTEGER DEFAULT '4' NOT NULL,
  last_heartbeat DATETIME DEFAULT CURRENT_TIMESTAMP,
  registered_at DATETIME DEFAULT CURRENT_TIMESTAMP NOT NULL,
  metadata JSON NOT NULL,
  org_id TEXT,
  models_supported JSON NOT NULL,
  models_canonical JSON NOT NULL,
  approval_status TEXT DEFAULT 'pending' NOT NULL,
  capabilities JSON NOT NULL,
  last_probe_at DATETIME,
  probe_status TEXT,
  sdk_version TEXT,
  name TEXT, -- 018_fleet_schema_correction
  secret_hash TEXT, -- 018_fleet_schema_correction
  approved_at DATETIME, -- 018_fleet_schema_correction
  approved_by TEXT, -- 018_fleet_schema_correction
  PRIMARY KEY (worker_id)
);
CREATE INDEX idx_workers_pool ON workers (pool);
CREATE INDEX idx_workers_project_id ON workers (project_id);
CREATE INDEX idx_workers_status ON workers (status);
CREATE INDEX ix_workers_org_approval ON workers (org_id, approval_status);

CREATE TABLE enrollment_keys ( -- 001_initial
  id TEXT NOT NULL,
  org_id TEXT NOT NULL,
  name TEXT,
  key_hash TEXT NOT NULL,
  max_uses INTEGER,
  current_uses INTEGER DEFAULT '0' NOT NULL,
  expires_at DATETIME,
  allowed_pools JSON NOT NULL,
  allowed_models JSON NOT NULL,
  created_at DATETIME DEFAULT CURRENT_TIMESTAMP NOT NULL,
  created_by TEXT,
  revoked BOOLEAN DEFAULT 'false' NOT NULL,
  PRIMARY KEY (id)
);
CREATE INDEX ix_enrollment_keys_org ON enrollment_keys (org_id);

CREATE TABLE fleet_tasks ( -- 019_fleet_tasks
  run_id TEXT NOT NULL,
  org_id TEXT NOT NULL,
  project_id TEXT,
  pool TEXT DEFAULT 'default' NOT NULL,
  model TEXT,
  labels JSON NOT NULL,
  payload JSON NOT NULL,
  status TEXT DEFAULT 'pending' NOT NULL,
  worker_id TEXT,
  claimed_at DATETIME,
  output TEXT,
  error TEXT,
  reported_at DATETIME,
  created_at DATETIME DEFAULT CURRENT_TIMESTAMP NOT NULL,
  lease_expires_at DATETIME, -- 020_fleet_task_lease
  attempts INTEGER DEFAULT '0' NOT NULL, -- 020_fleet_task_lease
  PRIMARY KEY (run_id),
  CONSTRAINT ck_fleet_tasks_status CHECK (status IN ('pending','claimed','completed','failed'))
);
CREATE INDEX ix_fleet_tasks_claim ON fleet_tasks (status, org_id, project_id, pool, created_at);
CREATE INDEX ix_fleet_tasks_lease ON fleet_tasks (status, lease_expires_at);
CREATE INDEX ix_fleet_tasks_scope ON fleet_tasks (org_id, project_id, created_at);

CREATE TABLE prompt_logs ( -- 001_initial
  log_id TEXT NOT NULL,
  project_id TEXT DEFAULT 'default',
  run_id TEXT DEFAULT '',
  agent_name TEXT NOT NULL,
  step_index INTEGER DEFAULT '0' NOT NULL,
  model TEXT DEFAULT '' NOT NULL,
  prompt_messages JSON,
  response_message JSON,
  input_tokens INTEGER DEFAULT '0' NOT NULL,
  output_tokens INTEGER DEFAULT '0' NOT NULL,
  cost_usd DOUBLE DEFAULT '0.0' NOT NULL,
  duration_ms INTEGER DEFAULT '0' NOT NULL,
  strategy TEXT DEFAULT 'react' NOT NULL,
  metadata JSON,
  is_example BOOLEAN DEFAULT 'false' NOT NULL,
  tags TEXT DEFAULT '[]' NOT NULL,
  source VARCHAR(20) DEFAULT 'playground' NOT NULL,
  input_text TEXT DEFAULT '' NOT NULL,
  output_text TEXT DEFAULT '' NOT NULL,
  created_at DATETIME DEFAULT CURRENT_TIMESTAMP NOT NULL,
  PRIMARY KEY (log_id),
  FOREIGN KEY(run_id) REFERENCES agent_runs (run_id) ON DELETE CASCADE
);
CREATE INDEX idx_prompt_logs_agent_name ON prompt_logs (agent_name);
CREATE INDEX idx_prompt_logs_model ON prompt_logs (model);
CREATE INDEX idx_prompt_logs_project_id ON prompt_logs (project_id);
CREATE INDEX idx_prompt_logs_run_id ON prompt_logs (run_id);

CREATE TABLE eval_runs ( -- 001_initial
  id INTEGER NOT NULL,
  dataset_id INTEGER NOT NULL,
  agent_name VARCHAR(255) NOT NULL,
  model VARCHAR(255) NOT NULL,
  results TEXT NOT NULL,
  created_at DATETIME DEFAULT CURRENT_TIMESTAMP NOT NULL,
  PRIMARY KEY (id),
  FOREIGN KEY(dataset_id) REFERENCES eval_datasets (id)
);
CREATE INDEX ix_eval_runs_dataset ON eval_runs (dataset_id);

CREATE TABLE organizations ( -- 001_initial
  id TEXT NOT NULL,
  name VARCHAR(255) NOT NULL,
  slug VARCHAR(255) NOT NULL,
  owner_id TEXT NOT NULL,
  created_at DATETIME DEFAULT CURRENT_TIMESTAMP NOT NULL,
  PRIMARY KEY (id),
  UNIQUE (slug),
  FOREIGN KEY(owner_id) REFERENCES users (id)
);
CREATE INDEX ix_organizations_owner ON organizations (owner_id);
CREATE UNIQUE INDEX ix_organizations_slug ON organizations (slug);

CREATE TABLE saved_workflow_versions ( -- 001_initial
  id TEXT NOT NULL,
  workflow_id TEXT NOT NULL,
  version INTEGER NOT NULL,
  yaml_content TEXT NOT NULL,
  created_at DATETIME DEFAULT CURRENT_TIMESTAMP NOT NULL,
  PRIMARY KEY (id),
  FOREIGN KEY(workflow_id) REFERENCES saved_workflows (id) ON DELETE CASCADE
);
CREATE INDEX idx_saved_workflow_versions_wf ON saved_workflow_versions (workflow_id);

CREATE TABLE context_chunks ( -- 001_initial
  id TEXT NOT NULL,
  document_id TEXT NOT NULL,
  scope TEXT NOT NULL,
  scope_id TEXT NOT NULL,
  project_id TEXT DEFAULT 'default' NOT NULL,
  content TEXT NOT NULL,
  chunk_index INTEGER DEFAULT '0' NOT NULL,
  token_count INTEGER DEFAULT '0' NOT NULL,
  embedding_model TEXT DEFAULT 'text-embedding-3-small' NOT NULL,
  content_hash TEXT NOT NULL,
  importance FLOAT DEFAULT '0.5' NOT NULL,
  access_count INTEGER DEFAULT '0' NOT NULL,
  last_accessed_at DATETIME,
  metadata JSON NOT NULL,
  created_at DATETIME DEFAULT CURRENT_TIMESTAMP NOT NULL,
  PRIMARY KEY (id),
  FOREIGN KEY(document_id) REFERENCES context_documents (id) ON DELETE CASCADE
);
CREATE INDEX idx_ctx_chunks_accessed ON context_chunks (last_accessed_at);
CREATE INDEX idx_ctx_chunks_doc ON context_chunks (document_id);
CREATE INDEX idx_ctx_chunks_hash ON context_chunks (content_hash);
CREATE INDEX idx_ctx_chunks_importance ON context_chunks (importance);
CREATE INDEX idx_ctx_chunks_project ON context_chunks (project_id);
CREATE INDEX idx_ctx_chunks_scope ON context_chunks (scope, scope_id);

CREATE TABLE harness_spend ( -- 001_initial
  id TEXT NOT NULL,
  timestamp DATETIME DEFAULT CURRENT_TIMESTAMP NOT NULL,
  user_id TEXT,
  team_id TEXT,
  project_id TEXT,
  org_id TEXT DEFAULT 'default' NOT NULL,
  model_requested TEXT,
  model_used TEXT,
  complexity_tier TEXT,
  input_tokens INTEGER DEFAULT '0' NOT NULL,
  output_tokens INTEGER DEFAULT '0' NOT NULL,
  cost_usd FLOAT DEFAULT '0.0' NOT NULL,
  latency_ms FLOAT DEFAULT '0.0' NOT NULL,
  policy_applied TEXT,
  budget_action TEXT,
  key_id TEXT,
  PRIMARY KEY (id),
  FOREIGN KEY(key_id) REFERENCES harness_keys (id) ON DELETE SET NULL
);
CREATE INDEX ix_harness_spend_model_used ON harness_spend (model_used);
CREATE INDEX ix_harness_spend_org_id ON harness_spend (org_id);
CREATE INDEX ix_harness_spend_timestamp ON harness_spend (timestamp);
CREATE INDEX ix_harness_spend_user_id ON harness_spend (user_id);

CREATE TABLE user_account ( -- 009_tenancy_identity
  id TEXT NOT NULL,
  org_id TEXT NOT NULL,
  email TEXT NOT NULL,
  name TEXT,
  password_hash TEXT,
  password_salt TEXT,
  oidc_sub TEXT,
  oidc_provider TEXT,
  status TEXT NOT NULL,
  created_at DATETIME DEFAULT CURRENT_TIMESTAMP NOT NULL,
  last_login_at DATETIME,
  PRIMARY KEY (id),
  CONSTRAINT uq_user_account_org_id UNIQUE (org_id, id),
  FOREIGN KEY(org_id) REFERENCES org (id)
);
CREATE UNIQUE INDEX ux_user_account_org_email ON user_account (org_id, email);

CREATE TABLE project ( -- 009_tenancy_identity
  id TEXT NOT NULL,
  org_id TEXT NOT NULL,
  slug TEXT NOT NULL,
  name TEXT NOT NULL,
  environment TEXT NOT NULL,
  status TEXT NOT NULL,
  settings JSON NOT NULL,
  data_key_ref TEXT,
  created_at DATETIME DEFAULT CURRENT_TIMESTAMP NOT NULL,
  updated_at DATETIME DEFAULT CURRENT_TIMESTAMP NOT NULL,
  PRIMARY KEY (id),
  CONSTRAINT uq_project_org_id UNIQUE (org_id, id),
  FOREIGN KEY(org_id) REFERENCES org (id)
);
CREATE UNIQUE INDEX ux_project_org_slug ON project (org_id, slug);

CREATE TABLE workspaces ( -- 001_initial
  id TEXT NOT NULL,
  org_id TEXT NOT NULL,
  name VARCHAR(255) NOT NULL,
  slug VARCHAR(100) NOT NULL,
  settings TEXT,
  created_at DATETIME DEFAULT CURRENT_TIMESTAMP NOT NULL,
  PRIMARY KEY (id),
  FOREIGN KEY(org_id) REFERENCES organizations (id)
);
CREATE INDEX ix_workspaces_org ON workspaces (org_id);
CREATE UNIQUE INDEX ix_workspaces_org_slug ON workspaces (org_id, slug);

CREATE TABLE membership ( -- 009_tenancy_identity
  id TEXT NOT NULL,
  user_id TEXT NOT NULL,
  org_id TEXT NOT NULL,
  project_id TEXT,
  role TEXT NOT NULL,
  created_at DATETIME DEFAULT CURRENT_TIMESTAMP NOT NULL,
  PRIMARY KEY (id),
  FOREIGN KEY(org_id, user_id) REFERENCES user_account (org_id, id) ON DELETE CASCADE,
  FOREIGN KEY(org_id, project_id) REFERENCES project (org_id, id) ON DELETE CASCADE,
  CONSTRAINT ck_membership_role_scope CHECK ((project_id IS NULL AND role IN ('org:owner','org:admin','org:member')) OR (project_id IS NOT NULL AND role IN ('project:admin','project:member','project:viewer')))
);
CREATE UNIQUE INDEX ux_membership_org ON membership (user_id, org_id) WHERE project_id IS NULL;
CREATE UNIQUE INDEX ux_membership_proj
  ON membership (user_id, org_id, project_id) WHERE project_id IS NOT NULL;

CREATE TABLE invitation ( -- 009_tenancy_identity
  id TEXT NOT NULL,
  org_id TEXT NOT NULL,
  project_id TEXT,
  email TEXT NOT NULL,
  role TEXT NOT NULL,
  token_hash TEXT NOT NULL,
  expires_at DATETIME NOT NULL,
  invited_by TEXT NOT NULL,
  accepted_at DATETIME,
  PRIMARY KEY (id),
  FOREIGN KEY(org_id, invited_by) REFERENCES user_account (org_id, id),
  FOREIGN KEY(org_id, project_id) REFERENCES project (org_id, id),
  CONSTRAINT ck_invitation_role_scope CHECK ((project_id IS NULL AND role IN ('org:owner','org:admin','org:member')) OR (project_id IS NOT NULL AND role IN ('project:admin','project:member','project:viewer')))
);
CREATE UNIQUE INDEX ux_invitation_token_hash ON invitation (token_hash);

CREATE TABLE user_session ( -- 009_tenancy_identity
  id TEXT NOT NULL,
  org_id TEXT NOT NULL,
  user_id TEXT NOT NULL,
  token_hash TEXT NOT NULL,
  created_at DATETIME DEFAULT CURRENT_TIMESTAMP NOT NULL,
  expires_at DATETIME NOT NULL,
  last_used_at DATETIME,
  PRIMARY KEY (id),
  FOREIGN KEY(org_id, user_id) REFERENCES user_account (org_id, id) ON DELETE CASCADE,
  UNIQUE (token_hash)
);

CREATE TABLE audit_event ( -- 010_tenant_audit
  id INTEGER NOT NULL,
  org_id TEXT NOT NULL,
  project_id TEXT,
  actor_user_id TEXT,
  action TEXT NOT NULL,
  target_type TEXT,
  target_id TEXT,
  metadata JSON NOT NULL,
  seq BIGINT NOT NULL,
  prev_hash TEXT,
  hash TEXT NOT NULL,
  created_at DATETIME DEFAULT CURRENT_TIMESTAMP NOT NULL,
  PRIMARY KEY (id),
  FOREIGN KEY(org_id, project_id) REFERENCES project (org_id, id),
  FOREIGN KEY(org_id) REFERENCES org (id)
);
CREATE UNIQUE INDEX ux_audit_seq_org ON audit_event (org_id, seq) WHERE project_id IS NULL;
CREATE UNIQUE INDEX ux_audit_seq_proj
  ON audit_event (org_id, project_id, seq) WHERE project_id IS NOT NULL;

CREATE TABLE audit_chain_head ( -- 010_tenant_audit
  id INTEGER NOT NULL,
  org_id TEXT NOT NULL,
  project_id TEXT,
  seq BIGINT NOT NULL,
  hash TEXT NOT NULL,
  updated_at DATETIME DEFAULT CURRENT_TIMESTAMP NOT NULL,
  PRIMARY KEY (id),
  FOREIGN KEY(org_id, project_id) REFERENCES project (org_id, id),
  FOREIGN KEY(org_id) REFERENCES org (id)
);
CREATE UNIQUE INDEX ux_audit_head_org ON audit_chain_head (org_id) WHERE project_id IS NULL;
CREATE UNIQUE INDEX ux_audit_head_proj
  ON audit_chain_head (org_id, project_id) WHERE project_id IS NOT NULL;

CREATE TABLE workspace_members ( -- 001_initial
  id INTEGER NOT NULL,
  workspace_id TEXT NOT NULL,
  user_id TEXT NOT NULL,
  role VARCHAR(20) NOT NULL,
  created_at DATETIME DEFAULT CURRENT_TIMESTAMP NOT NULL,
  PRIMARY KEY (id),
  FOREIGN KEY(workspace_id) REFERENCES workspaces (id),
  FOREIGN KEY(user_id) REFERENCES users (id)
);
CREATE INDEX ix_wm_user ON workspace_members (user_id);
CREATE INDEX ix_wm_workspace ON workspace_members (workspace_id);
CREATE UNIQUE INDEX ix_wm_workspace_user ON workspace_members (workspace_id, user_id);

CREATE TABLE llm_providers ( -- 001_initial
  id INTEGER NOT NULL,
  workspace_id TEXT NOT NULL,
  provider_name VARCHAR(50) NOT NULL,
  api_key_encrypted TEXT NOT NULL,
  display_name VARCHAR(255) NOT NULL,
  is_default BOOLEAN NOT NULL,
  created_at DATETIME DEFAULT CURRENT_TIMESTAMP NOT NULL,
  PRIMARY KEY (id),
  FOREIGN KEY(workspace_id) REFERENCES workspaces (id)
);
CREATE INDEX ix_llm_providers_workspace ON llm_providers (workspace_id);
CREATE UNIQUE INDEX ix_llm_providers_ws_provider ON llm_providers (workspace_id, provider_name);

CREATE TABLE invitations ( -- 001_initial
  id TEXT NOT NULL,
  workspace_id TEXT NOT NULL,
  email VARCHAR(255) NOT NULL,
  role VARCHAR(20) NOT NULL,
  invited_by TEXT NOT NULL,
  expires_at DATETIME NOT NULL,
  accepted_at DATETIME,
  created_at DATETIME DEFAULT CURRENT_TIMESTAMP NOT NULL,
  PRIMARY KEY (id),
  FOREIGN KEY(workspace_id) REFERENCES workspaces (id),
  FOREIGN KEY(invited_by) REFERENCES users (id)
);
CREATE INDEX ix_invitations_email ON invitations (email);
CREATE INDEX ix_invitations_workspace ON invitations (workspace_id);
