-- Revision 001_initial on PostgreSQL: the 45 tables that all later revisions build on.
-- Databases were built with this file, so it never changes; later revisions change the schema.

-- Workflows: runs, their events, sessions, playground, saved workflows.
CREATE TABLE workflow_runs (
  id TEXT NOT NULL,
  project_id TEXT DEFAULT 'default' NOT NULL,
  workflow_name TEXT NOT NULL,
  run_id TEXT NOT NULL,
  status TEXT DEFAULT 'pending' NOT NULL,
  data JSONB DEFAULT '{}' NOT NULL,
  owner_id TEXT,
  idempotency_key VARCHAR(255),
  input JSONB DEFAULT '{}' NOT NULL,
  output JSONB,
  error TEXT,
  steps_completed INTEGER DEFAULT '0' NOT NULL,
  steps_total INTEGER,
  priority INTEGER DEFAULT '0',
  created_at TIMESTAMPTZ DEFAULT now(),
  updated_at TIMESTAMPTZ DEFAULT now(),
  target_pool TEXT,
  target_labels JSONB,
  target_worker_id TEXT,
  org_id TEXT,
  target_model TEXT,
  input_encrypted BOOLEAN DEFAULT 'false' NOT NULL,
  output_encrypted BOOLEAN DEFAULT 'false' NOT NULL,
  PRIMARY KEY (id)
);
CREATE INDEX idx_wf_runs_target_pool ON workflow_runs (target_pool) WHERE target_pool IS NOT NULL;
CREATE UNIQUE INDEX idx_workflow_runs_idempotency_key
  ON workflow_runs (idempotency_key) WHERE idempotency_key IS NOT NULL;
CREATE INDEX idx_workflow_runs_name_status ON workflow_runs (workflow_name, status);
CREATE INDEX idx_workflow_runs_project_id ON workflow_runs (project_id);
CREATE INDEX idx_workflow_runs_run_id ON workflow_runs (run_id);
CREATE INDEX idx_workflow_runs_status ON workflow_runs (status);
CREATE INDEX idx_workflow_runs_updated_at ON workflow_runs (updated_at);
CREATE INDEX idx_workflow_runs_workflow_name ON workflow_runs (workflow_name);

CREATE TABLE workflow_events (
  id SERIAL,
  project_id TEXT DEFAULT 'default' NOT NULL,
  run_id TEXT NOT NULL,
  event_type VARCHAR(50) NOT NULL,
  data JSONB DEFAULT '{}' NOT NULL,
  created_at TIMESTAMPTZ DEFAULT now(),
  PRIMARY KEY (id)
);
CREATE INDEX idx_workflow_events_project_id ON workflow_events (project_id);
CREATE INDEX idx_workflow_events_run_id ON workflow_events (run_id);

CREATE TABLE sessions (
  session_id TEXT NOT NULL,
  project_id TEXT DEFAULT 'default' NOT NULL,
  agent_name TEXT NOT NULL,
  messages JSONB DEFAULT '[]',
  summary TEXT DEFAULT '',
  memory_keys JSONB DEFAULT '[]',
  created_at TIMESTAMPTZ DEFAULT now(),
  updated_at TIMESTAMPTZ DEFAULT now(),
  PRIMARY KEY (session_id, project_id)
);
CREATE INDEX idx_sessions_agent ON sessions (agent_name);
CREATE INDEX idx_sessions_project_id ON sessions (project_id);
CREATE INDEX idx_sessions_updated ON sessions (updated_at);

CREATE TABLE playground_agents (
  name VARCHAR(255) NOT NULL,
  project_id TEXT DEFAULT 'default' NOT NULL,
  spec TEXT NOT NULL,
  created_at TIMESTAMPTZ DEFAULT now() NOT NULL,
  updated_at TIMESTAMPTZ DEFAULT now() NOT NULL,
  PRIMARY KEY (name)
);
CREATE INDEX ix_playground_agents_project_id ON playground_agents (project_id);

CREATE TABLE saved_workflows (
  id TEXT NOT NULL,
  project_id TEXT DEFAULT 'default' NOT NULL,
  name TEXT NOT NULL,
  description TEXT DEFAULT '' NOT NULL,
  yaml_content TEXT NOT NULL,
  version INTEGER DEFAULT '1' NOT NULL,
  is_active BOOLEAN DEFAULT 'true' NOT NULL,
  created_by TEXT,
  created_at TIMESTAMPTZ DEFAULT now() NOT NULL,
  updated_at TIMESTAMPTZ DEFAULT now() NOT NULL,
  PRIMARY KEY (id),
  UNIQUE (project_id, name)
);
CREATE INDEX idx_saved_workflows_name ON saved_workflows (name);
CREATE INDEX idx_saved_workflows_project ON saved_workflows (project_id);

CREATE TABLE saved_workflow_versions (
  id TEXT NOT NULL,
  workflow_id TEXT NOT NULL,
  version INTEGER NOT NULL,
  yaml_content TEXT NOT NULL,
  created_at TIMESTAMPTZ DEFAULT now() NOT NULL,
  PRIMARY KEY (id),
  UNIQUE (workflow_id, version),
  FOREIGN KEY (workflow_id) REFERENCES saved_workflows (id) ON DELETE CASCADE
);
CREATE INDEX idx_saved_workflow_versions_wf ON saved_workflow_versions (workflow_id);

-- Agents: runs, prompts, access tokens, evaluations.
CREATE TABLE agent_runs (
  run_id TEXT NOT NULL,
  project_id TEXT DEFAULT 'default' NOT NULL,
  agent_name TEXT NOT NULL,
  status TEXT DEFAULT 'completed' NOT NULL,
  input_text TEXT DEFAULT '',
  output_text TEXT DEFAULT '',
  total_tokens INTEGER DEFAULT '0',
  input_tokens INTEGER DEFAULT '0',
  output_tokens INTEGER DEFAULT '0',
  cost_usd DOUBLE PRECISION DEFAULT '0',
  model TEXT DEFAULT '',
  duration_ms INTEGER DEFAULT '0',
  tool_calls JSONB DEFAULT '[]',
  metadata JSONB DEFAULT '{}',
  started_at DOUBLE PRECISION DEFAULT '0',
  completed_at DOUBLE PRECISION DEFAULT '0',
  error TEXT,
  checkpoint_run_id TEXT,
  created_at TIMESTAMPTZ DEFAULT now(),
  run_type TEXT DEFAULT 'standalone' NOT NULL,
  parent_workflow_run_id TEXT,
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

CREATE TABLE prompt_logs (
  log_id TEXT NOT NULL,
  project_id TEXT DEFAULT 'default' NOT NULL,
  run_id TEXT DEFAULT '',
  agent_name TEXT NOT NULL,
  step_index INTEGER DEFAULT '0',
  model TEXT DEFAULT '',
  prompt_messages JSONB DEFAULT '[]',
  response_message JSONB DEFAULT '{}',
  input_tokens INTEGER DEFAULT '0',
  output_tokens INTEGER DEFAULT '0',
  cost_usd DOUBLE PRECISION DEFAULT '0',
  duration_ms INTEGER DEFAULT '0',
  strategy TEXT DEFAULT 'react',
  metadata JSONB DEFAULT '{}',
  is_example BOOLEAN DEFAULT 'false' NOT NULL,
  tags TEXT DEFAULT '[]' NOT NULL,
  source VARCHAR(20) DEFAULT 'playground' NOT NULL,
  input_text TEXT DEFAULT '' NOT NULL,
  output_text TEXT DEFAULT '' NOT NULL,
  created_at TIMESTAMPTZ DEFAULT now(),
  PRIMARY KEY (log_id),
  FOREIGN KEY (run_id) REFERENCES agent_runs (run_id) ON DELETE CASCADE
);
CREATE INDEX idx_prompt_logs_agent_name ON prompt_logs (agent_name);
CREATE INDEX idx_prompt_logs_model ON prompt_logs (model);
CREATE INDEX idx_prompt_logs_project_id ON prompt_logs (project_id);
CREATE INDEX idx_prompt_logs_run_id ON prompt_logs (run_id);
CREATE INDEX ix_prompt_logs_is_example ON prompt_logs (is_example);
CREATE INDEX ix_prompt_logs_source ON prompt_logs (source);

CREATE TABLE agent_access_tokens (
  token_id TEXT NOT NULL,
  project_id TEXT DEFAULT 'default' NOT NULL,
  token_hash TEXT NOT NULL,
  token_suffix VARCHAR(4) DEFAULT '' NOT NULL,
  agent_name TEXT NOT NULL,
  grantor_id TEXT NOT NULL,
  scopes TEXT[] DEFAULT '{}',
  status TEXT DEFAULT 'active',
  single_use BOOLEAN DEFAULT 'false',
  expires_at TIMESTAMPTZ NOT NULL,
  used_at TIMESTAMPTZ,
  created_at TIMESTAMPTZ DEFAULT now(),
  PRIMARY KEY (token_id),
  UNIQUE (token_hash)
);
CREATE INDEX idx_access_tokens_agent ON agent_access_tokens (agent_name);
CREATE INDEX idx_access_tokens_expires ON agent_access_tokens (expires_at);
CREATE UNIQUE INDEX idx_access_tokens_hash ON agent_access_tokens (token_hash);
CREATE INDEX idx_access_tokens_project_id ON agent_access_tokens (project_id);
CREATE INDEX idx_access_tokens_status ON agent_access_tokens (status);

CREATE TABLE eval_datasets (
  id SERIAL,
  project_id TEXT DEFAULT 'default' NOT NULL,
  name VARCHAR(255) NOT NULL,
  description TEXT,
  cases TEXT NOT NULL,
  created_at TIMESTAMPTZ DEFAULT now(),
  PRIMARY KEY (id),
  UNIQUE (project_id, name)
);
CREATE INDEX ix_eval_datasets_project_id ON eval_datasets (project_id);

CREATE TABLE eval_runs (
  id SERIAL,
  project_id TEXT DEFAULT 'default' NOT NULL,
  dataset_id INTEGER NOT NULL,
  agent_name VARCHAR(255) NOT NULL,
  model VARCHAR(255) NOT NULL,
  results TEXT NOT NULL,
  created_at TIMESTAMPTZ DEFAULT now(),
  PRIMARY KEY (id),
  FOREIGN KEY (dataset_id) REFERENCES eval_datasets (id)
);
CREATE INDEX ix_eval_runs_dataset ON eval_runs (dataset_id);
CREATE INDEX ix_eval_runs_project_id ON eval_runs (project_id);

-- Costs, budgets and guardrails.
CREATE TABLE cost_records (
  id SERIAL,
  project_id TEXT DEFAULT 'default' NOT NULL,
  agent_name VARCHAR(255) NOT NULL,
  model VARCHAR(255) NOT NULL,
  cost_usd DOUBLE PRECISION NOT NULL,
  tokens INTEGER NOT NULL,
  created_at TIMESTAMPTZ DEFAULT now(),
  PRIMARY KEY (id)
);
CREATE INDEX ix_cost_records_agent ON cost_records (agent_name);
CREATE INDEX ix_cost_records_created ON cost_records (created_at);
CREATE INDEX ix_cost_records_model ON cost_records (model);
CREATE INDEX ix_cost_records_project_id ON cost_records (project_id);

CREATE TABLE budget_limits (
  id SERIAL,
  project_id TEXT DEFAULT 'default' NOT NULL,
  agent_name VARCHAR(255) NOT NULL,
  max_daily_usd DOUBLE PRECISION NOT NULL,
  max_monthly_usd DOUBLE PRECISION NOT NULL,
  action VARCHAR(20) DEFAULT 'warn',
  fallback_chain TEXT,
  created_at TIMESTAMPTZ DEFAULT now(),
  updated_at TIMESTAMPTZ DEFAULT now(),
  PRIMARY KEY (id),
  UNIQUE (project_id, agent_name)
);
CREATE UNIQUE INDEX ix_budget_limits_project_agent ON budget_limits (project_id, agent_name);

CREATE TABLE budget_spend (
  id SERIAL,
  project_id TEXT DEFAULT 'default' NOT NULL,
  agent_name VARCHAR(255) NOT NULL,
  cost_usd DOUBLE PRECISION NOT NULL,
  created_at TIMESTAMPTZ DEFAULT now(),
  PRIMARY KEY (id)
);
CREATE INDEX ix_budget_spend_agent ON budget_spend (agent_name);
CREATE INDEX ix_budget_spend_created ON budget_spend (created_at);
CREATE INDEX ix_budget_spend_project_id ON budget_spend (project_id);

CREATE TABLE guardrail_configs (
  id SERIAL,
  project_id TEXT DEFAULT 'default' NOT NULL,
  agent_name VARCHAR(255) NOT NULL,
  guardrail_type VARCHAR(50) NOT NULL,
  enabled BOOLEAN DEFAULT 'true',
  config TEXT,
  created_at TIMESTAMPTZ DEFAULT now(),
  updated_at TIMESTAMPTZ DEFAULT now(),
  PRIMARY KEY (id)
);
CREATE UNIQUE INDEX ix_guardrail_configs_project_agent_type
  ON guardrail_configs (project_id, agent_name, guardrail_type);

CREATE TABLE guardrail_events (
  id SERIAL,
  project_id TEXT DEFAULT 'default' NOT NULL,
  agent_name VARCHAR(255) NOT NULL,
  event_type VARCHAR(50) NOT NULL,
  entity_type VARCHAR(50),
  action VARCHAR(50),
  detail TEXT,
  created_at TIMESTAMPTZ DEFAULT now(),
  PRIMARY KEY (id)
);
CREATE INDEX ix_guardrail_events_agent ON guardrail_events (agent_name);
CREATE INDEX ix_guardrail_events_created ON guardrail_events (created_at);
CREATE INDEX ix_guardrail_events_project_id ON guardrail_events (project_id);
CREATE INDEX ix_guardrail_events_type ON guardrail_events (event_type);

-- Connectors: triggers, credentials, custom connectors, cursors.
CREATE TABLE connector_credentials (
  id VARCHAR(100) NOT NULL,
  project_id TEXT DEFAULT 'default' NOT NULL,
  connector_name VARCHAR(255) NOT NULL,
  display_name VARCHAR(255) DEFAULT '' NOT NULL,
  config JSONB DEFAULT '{}' NOT NULL,
  status VARCHAR(50) DEFAULT 'not_configured' NOT NULL,
  access_token TEXT,
  refresh_token TEXT,
  token_type VARCHAR(50),
  expires_at TIMESTAMPTZ,
  scope TEXT,
  created_at TIMESTAMPTZ DEFAULT now() NOT NULL,
  updated_at TIMESTAMPTZ DEFAULT now() NOT NULL,
  PRIMARY KEY (id),
  UNIQUE (project_id, connector_name)
);
CREATE INDEX ix_connector_credentials_project_connector
  ON connector_credentials (project_id, connector_name);
CREATE INDEX ix_connector_credentials_project_id ON connector_credentials (project_id);

CREATE TABLE connector_triggers (
  id VARCHAR(36) NOT NULL,
  project_id TEXT DEFAULT 'default' NOT NULL,
  source VARCHAR(100) NOT NULL,
  strategy VARCHAR(20) NOT NULL,
  poll_interval_seconds INTEGER,
  filter_json JSON DEFAULT '{}' NOT NULL,
  target VARCHAR(200) NOT NULL,
  action VARCHAR(50) NOT NULL,
  context_json JSON DEFAULT '{}' NOT NULL,
  enabled BOOLEAN DEFAULT 'true' NOT NULL,
  created_at TIMESTAMPTZ DEFAULT now(),
  updated_at TIMESTAMPTZ DEFAULT now(),
  PRIMARY KEY (id)
);
CREATE INDEX ix_connector_triggers_project_id ON connector_triggers (project_id);

CREATE TABLE connector_cursors (
  id SERIAL,
  project_id TEXT DEFAULT 'default' NOT NULL,
  connector_name VARCHAR(100) NOT NULL,
  channel VARCHAR(255) NOT NULL,
  cursor_value TEXT NOT NULL,
  updated_at TIMESTAMPTZ DEFAULT now(),
  PRIMARY KEY (id),
  UNIQUE (project_id, connector_name, channel)
);
CREATE INDEX ix_connector_cursors_project_id ON connector_cursors (project_id);

CREATE TABLE custom_connectors (
  name VARCHAR(100) NOT NULL,
  project_id TEXT DEFAULT 'default' NOT NULL,
  display_name VARCHAR(200) NOT NULL,
  category VARCHAR(100) DEFAULT 'custom' NOT NULL,
  description TEXT DEFAULT '' NOT NULL,
  auth_type VARCHAR(20) DEFAULT 'api_key' NOT NULL,
  auth_fields_json JSON DEFAULT '[]' NOT NULL,
  mcp_command_json JSON DEFAULT '[]' NOT NULL,
  docs_url TEXT,
  agent_description TEXT DEFAULT '' NOT NULL,
  example_prompt TEXT DEFAULT '' NOT NULL,
  oauth_authorize_url TEXT,
  oauth_token_url TEXT,
  oauth_scopes_json JSON DEFAULT '[]',
  supports_webhook BOOLEAN DEFAULT 'false' NOT NULL,
  supports_listener BOOLEAN DEFAULT 'false' NOT NULL,
  supports_poller BOOLEAN DEFAULT 'false' NOT NULL,
  created_at TIMESTAMPTZ DEFAULT now(),
  updated_at TIMESTAMPTZ DEFAULT now(),
  PRIMARY KEY (name)
);
CREATE INDEX ix_custom_connectors_project_id ON custom_connectors (project_id);

-- Context: documents and their chunks.
CREATE TABLE context_documents (
  id TEXT NOT NULL,
  scope TEXT NOT NULL,
  scope_id TEXT NOT NULL,
  project_id TEXT DEFAULT 'default' NOT NULL,
  title TEXT NOT NULL,
  source TEXT DEFAULT 'upload' NOT NULL,
  source_uri TEXT,
  mime_type TEXT DEFAULT 'text/plain' NOT NULL,
  file_size_bytes INTEGER DEFAULT '0',
  chunk_count INTEGER DEFAULT '0',
  status TEXT DEFAULT 'pending' NOT NULL,
  confidence DOUBLE PRECISION DEFAULT '1',
  freshness_at TIMESTAMPTZ DEFAULT now(),
  metadata JSONB DEFAULT '{}',
  created_at TIMESTAMPTZ DEFAULT now(),
  updated_at TIMESTAMPTZ DEFAULT now(),
  tags TEXT[] DEFAULT '{}' NOT NULL,
  PRIMARY KEY (id)
);
CREATE INDEX idx_ctx_docs_project ON context_documents (project_id);
CREATE INDEX idx_ctx_docs_scope ON context_documents (scope, scope_id);
CREATE INDEX idx_ctx_docs_source ON context_documents (source);
CREATE INDEX idx_ctx_docs_status ON context_documents (status);
CREATE INDEX idx_ctx_docs_tags ON context_documents USING gin (tags);

CREATE TABLE context_chunks (
  id TEXT NOT NULL,
  document_id TEXT NOT NULL,
  scope TEXT NOT NULL,
  scope_id TEXT NOT NULL,
  project_id TEXT DEFAULT 'default' NOT NULL,
  content TEXT NOT NULL,
  chunk_index INTEGER DEFAULT '0',
  token_count INTEGER DEFAULT '0',
  embedding_model TEXT DEFAULT 'text-embedding-3-small',
  content_hash TEXT NOT NULL,
  importance DOUBLE PRECISION DEFAULT '0.5',
  access_count INTEGER DEFAULT '0',
  last_accessed_at TIMESTAMPTZ,
  metadata JSONB DEFAULT '{}',
  created_at TIMESTAMPTZ DEFAULT now(),
  PRIMARY KEY (id),
  FOREIGN KEY (document_id) REFERENCES context_documents (id) ON DELETE CASCADE
);
CREATE INDEX idx_ctx_chunks_accessed ON context_chunks (last_accessed_at);
CREATE INDEX idx_ctx_chunks_doc ON context_chunks (document_id);
CREATE INDEX idx_ctx_chunks_hash ON context_chunks (content_hash);
CREATE INDEX idx_ctx_chunks_importance ON context_chunks (importance);
CREATE INDEX idx_ctx_chunks_project ON context_chunks (project_id);
CREATE INDEX idx_ctx_chunks_scope ON context_chunks (scope, scope_id);

-- Harness: policies, keys, spending, audit.
CREATE TABLE harness_policies (
  id UUID NOT NULL,
  name TEXT NOT NULL,
  description TEXT DEFAULT '',
  org_id TEXT,
  team_id TEXT,
  project_id TEXT,
  user_id TEXT,
  priority INTEGER DEFAULT '0' NOT NULL,
  tier_overrides JSONB DEFAULT '{}',
  blocked_models JSONB DEFAULT '[]',
  allowed_models JSONB DEFAULT '[]',
  max_tier TEXT,
  force_model TEXT,
  allow_override BOOLEAN DEFAULT 'true' NOT NULL,
  enabled BOOLEAN DEFAULT 'true' NOT NULL,
  created_at TIMESTAMPTZ DEFAULT now() NOT NULL,
  updated_at TIMESTAMPTZ DEFAULT now() NOT NULL,
  PRIMARY KEY (id)
);
CREATE INDEX ix_harness_policies_scope ON harness_policies (org_id, team_id, project_id, user_id);

CREATE TABLE harness_keys (
  id UUID NOT NULL,
  key_hash TEXT NOT NULL,
  key_suffix TEXT NOT NULL,
  name TEXT,
  user_id TEXT NOT NULL,
  org_id TEXT DEFAULT 'default' NOT NULL,
  team_id TEXT,
  project_id TEXT,
  allowed_models JSONB DEFAULT '[]',
  max_budget_daily_usd DOUBLE PRECISION,
  max_budget_monthly_usd DOUBLE PRECISION,
  enabled BOOLEAN DEFAULT 'true' NOT NULL,
  created_at TIMESTAMPTZ DEFAULT now() NOT NULL,
  expires_at TIMESTAMPTZ,
  PRIMARY KEY (id),
  UNIQUE (key_hash)
);
CREATE INDEX ix_harness_keys_org_id ON harness_keys (org_id);
CREATE INDEX ix_harness_keys_user_id ON harness_keys (user_id);

CREATE TABLE harness_spend (
  id UUID NOT NULL,
  timestamp TIMESTAMPTZ DEFAULT now() NOT NULL,
  user_id TEXT,
  team_id TEXT,
  project_id TEXT,
  org_id TEXT DEFAULT 'default',
  model_requested TEXT,
  model_used TEXT,
  complexity_tier TEXT,
  input_tokens INTEGER DEFAULT '0',
  output_tokens INTEGER DEFAULT '0',
  cost_usd DOUBLE PRECISION DEFAULT '0',
  latency_ms DOUBLE PRECISION DEFAULT '0',
  policy_applied TEXT,
  budget_action TEXT,
  key_id UUID,
  PRIMARY KEY (id),
  FOREIGN KEY (key_id) REFERENCES harness_keys (id) ON DELETE SET NULL
);
CREATE INDEX ix_harness_spend_model_used ON harness_spend (model_used);
CREATE INDEX ix_harness_spend_org_id ON harness_spend (org_id);
CREATE INDEX ix_harness_spend_timestamp ON harness_spend (timestamp);
CREATE INDEX ix_harness_spend_user_id ON harness_spend (user_id);

CREATE TABLE harness_audit (
  id UUID NOT NULL,
  timestamp TIMESTAMPTZ DEFAULT now() NOT NULL,
  event_type TEXT NOT NULL,
  user_id TEXT,
  org_id TEXT DEFAULT 'default',
  details JSONB DEFAULT '{}',
  PRIMARY KEY (id)
);
CREATE INDEX ix_harness_audit_event_type ON harness_audit (event_type);
CREATE INDEX ix_harness_audit_timestamp ON harness_audit (timestamp);

-- Notifications: channels, triggers, history.
CREATE TABLE notification_channels (
  id SERIAL,
  project_id TEXT DEFAULT 'default' NOT NULL,
  channel_type TEXT NOT NULL,
  enabled BOOLEAN DEFAULT 'true',
  config TEXT DEFAULT '{}',
  created_at TIMESTAMPTZ DEFAULT now(),
  updated_at TIMESTAMPTZ DEFAULT now(),
  PRIMARY KEY (id),
  UNIQUE (project_id, channel_type)
);

CREATE TABLE notification_triggers (
  id SERIAL,
  project_id TEXT DEFAULT 'default' NOT NULL,
  trigger TEXT NOT NULL,
  channel_type TEXT NOT NULL,
  enabled BOOLEAN DEFAULT 'true',
  created_at TIMESTAMPTZ DEFAULT now(),
  PRIMARY KEY (id),
  UNIQUE (project_id, trigger, channel_type)
);

CREATE TABLE notification_history (
  id SERIAL,
  project_id TEXT DEFAULT 'default' NOT NULL,
  trigger TEXT NOT NULL,
  title TEXT NOT NULL,
  body TEXT,
  severity TEXT DEFAULT 'info',
  agent_name TEXT,
  channel_type TEXT NOT NULL,
  delivered BOOLEAN DEFAULT 'false',
  error TEXT,
  created_at TIMESTAMPTZ DEFAULT now(),
  PRIMARY KEY (id)
);
CREATE INDEX ix_notification_history_created_at ON notification_history (created_at);
CREATE INDEX ix_notification_history_project_id ON notification_history (project_id);
CREATE INDEX ix_notification_history_trigger ON notification_history (trigger);

-- Fleet: workers, enrolment keys, audit.
CREATE TABLE workers (
  worker_id TEXT NOT NULL,
  pool TEXT DEFAULT 'default' NOT NULL,
  labels JSONB DEFAULT '{}' NOT NULL,
  project_id TEXT DEFAULT 'default' NOT NULL,
  status TEXT DEFAULT 'active' NOT NULL,
  max_concurrent INTEGER DEFAULT '4' NOT NULL,
  last_heartbeat TIMESTAMPTZ DEFAULT now(),
  registered_at TIMESTAMPTZ DEFAULT now(),
  metadata JSONB DEFAULT '{}' NOT NULL,
  org_id TEXT,
  models_supported TEXT[] DEFAULT '{}' NOT NULL,
  models_canonical TEXT[] DEFAULT '{}' NOT NULL,
  approval_status TEXT DEFAULT 'pending' NOT NULL,
  capabilities JSONB DEFAULT '{}' NOT NULL,
  last_probe_at TIMESTAMPTZ,
  probe_status TEXT,
  sdk_version TEXT,
  PRIMARY KEY (worker_id)
);
CREATE INDEX idx_workers_heartbeat ON workers (last_heartbeat) WHERE status = 'active';
CREATE INDEX idx_workers_pool ON workers (pool);
CREATE INDEX idx_workers_project_id ON workers (project_id);
CREATE INDEX idx_workers_status ON workers (status);
CREATE INDEX ix_workers_models_canonical ON workers USING gin (models_canonical);
CREATE INDEX ix_workers_org_approval ON workers (org_id, approval_status);

CREATE TABLE enrollment_keys (
  id UUID NOT NULL,
  org_id TEXT NOT NULL,
  name TEXT,
  key_hash TEXT NOT NULL,
  max_uses INTEGER,
  current_uses INTEGER DEFAULT '0' NOT NULL,
  expires_at TIMESTAMPTZ,
  allowed_pools TEXT[] DEFAULT '{}' NOT NULL,
  allowed_models TEXT[] DEFAULT '{}' NOT NULL,
  created_at TIMESTAMPTZ DEFAULT now() NOT NULL,
  created_by TEXT,
  revoked BOOLEAN DEFAULT 'false' NOT NULL,
  PRIMARY KEY (id)
);
CREATE INDEX ix_enrollment_keys_org ON enrollment_keys (org_id);

CREATE TABLE fleet_audit_events (
  id UUID NOT NULL,
  org_id TEXT NOT NULL,
  event_type TEXT NOT NULL,
  worker_id TEXT,
  details JSONB DEFAULT '{}' NOT NULL,
  created_at TIMESTAMPTZ DEFAULT now() NOT NULL,
  PRIMARY KEY (id)
);
CREATE INDEX ix_fleet_audit_org_created ON fleet_audit_events (org_id, created_at);

-- Users, organisations, workspaces and their members.
CREATE TABLE users (
  id TEXT NOT NULL,
  email VARCHAR(255) NOT NULL,
  password_hash TEXT,
  display_name VARCHAR(255) DEFAULT '' NOT NULL,
  avatar_url TEXT,
  oauth_provider VARCHAR(50),
  oauth_id VARCHAR(255),
  is_active BOOLEAN DEFAULT 'true' NOT NULL,
  totp_secret VARCHAR(64),
  created_at TIMESTAMPTZ DEFAULT now() NOT NULL,
  PRIMARY KEY (id),
  UNIQUE (email)
);
CREATE UNIQUE INDEX ix_users_email ON users (email);
CREATE INDEX ix_users_oauth ON users (oauth_provider, oauth_id);

CREATE TABLE organizations (
  id TEXT NOT NULL,
  name VARCHAR(255) NOT NULL,
  slug VARCHAR(255) NOT NULL,
  owner_id TEXT NOT NULL,
  created_at TIMESTAMPTZ DEFAULT now() NOT NULL,
  PRIMARY KEY (id),
  UNIQUE (slug),
  FOREIGN KEY (owner_id) REFERENCES users (id)
);
CREATE INDEX ix_organizations_owner ON organizations (owner_id);
CREATE UNIQUE INDEX ix_organizations_slug ON organizations (slug);

CREATE TABLE workspaces (
  id TEXT NOT NULL,
  org_id TEXT NOT NULL,
  name VARCHAR(255) NOT NULL,
  slug VARCHAR(100) NOT NULL,
  settings JSONB DEFAULT '{}',
  created_at TIMESTAMPTZ DEFAULT now() NOT NULL,
  PRIMARY KEY (id),
  UNIQUE (org_id, slug),
  FOREIGN KEY (org_id) REFERENCES organizations (id)
);
CREATE INDEX ix_workspaces_org ON workspaces (org_id);

CREATE TABLE workspace_members (
  id SERIAL,
  workspace_id TEXT NOT NULL,
  user_id TEXT NOT NULL,
  role VARCHAR(20) DEFAULT 'member' NOT NULL,
  created_at TIMESTAMPTZ DEFAULT now() NOT NULL,
  PRIMARY KEY (id),
  UNIQUE (workspace_id, user_id),
  FOREIGN KEY (user_id) REFERENCES users (id) ON DELETE CASCADE,
  FOREIGN KEY (workspace_id) REFERENCES workspaces (id) ON DELETE CASCADE
);
CREATE INDEX ix_wm_user ON workspace_members (user_id);
CREATE INDEX ix_wm_workspace ON workspace_members (workspace_id);

CREATE TABLE llm_providers (
  id SERIAL,
  workspace_id TEXT NOT NULL,
  provider_name VARCHAR(50) NOT NULL,
  api_key_encrypted TEXT NOT NULL,
  display_name VARCHAR(255) DEFAULT '' NOT NULL,
  is_default BOOLEAN DEFAULT 'false' NOT NULL,
  created_at TIMESTAMPTZ DEFAULT now() NOT NULL,
  PRIMARY KEY (id),
  UNIQUE (workspace_id, provider_name),
  FOREIGN KEY (workspace_id) REFERENCES workspaces (id) ON DELETE CASCADE
);
CREATE INDEX ix_llm_providers_workspace ON llm_providers (workspace_id);

CREATE TABLE invitations (
  id TEXT NOT NULL,
  workspace_id TEXT NOT NULL,
  email VARCHAR(255) NOT NULL,
  role VARCHAR(20) DEFAULT 'member' NOT NULL,
  invited_by TEXT NOT NULL,
  expires_at TIMESTAMPTZ NOT NULL,
  accepted_at TIMESTAMPTZ,
  created_at TIMESTAMPTZ DEFAULT now() NOT NULL,
  PRIMARY KEY (id),
  FOREIGN KEY (invited_by) REFERENCES users (id),
  FOREIGN KEY (workspace_id) REFERENCES workspaces (id) ON DELETE CASCADE
);
CREATE INDEX ix_invitations_email ON invitations (email);
CREATE INDEX ix_invitations_workspace ON invitations (workspace_id);

-- Hosting: instances, subscriptions, invoices, preferences. Not in a home's SQLite database.
CREATE TABLE cloud_instances (
  id TEXT NOT NULL,
  user_id TEXT NOT NULL,
  name VARCHAR(255) NOT NULL,
  region VARCHAR(50) DEFAULT 'us-central1' NOT NULL,
  status VARCHAR(50) DEFAULT 'provisioning' NOT NULL,
  cloud_run_service_name VARCHAR(255),
  url TEXT,
  plan_id VARCHAR(50),
  created_at TIMESTAMPTZ DEFAULT now() NOT NULL,
  updated_at TIMESTAMPTZ DEFAULT now() NOT NULL,
  PRIMARY KEY (id),
  FOREIGN KEY (user_id) REFERENCES users (id) ON DELETE CASCADE
);
CREATE INDEX ix_cloud_instances_user ON cloud_instances (user_id);

CREATE TABLE cloud_subscriptions (
  id TEXT NOT NULL,
  user_id TEXT NOT NULL,
  plan_id VARCHAR(50) DEFAULT 'free' NOT NULL,
  stripe_customer_id VARCHAR(255),
  stripe_subscription_id VARCHAR(255),
  status VARCHAR(50) DEFAULT 'active' NOT NULL,
  current_period_end TIMESTAMPTZ,
  cancel_at_period_end BOOLEAN DEFAULT 'false' NOT NULL,
  created_at TIMESTAMPTZ DEFAULT now() NOT NULL,
  PRIMARY KEY (id),
  FOREIGN KEY (user_id) REFERENCES users (id) ON DELETE CASCADE
);
CREATE INDEX ix_cloud_subscriptions_user ON cloud_subscriptions (user_id);

CREATE TABLE cloud_invoices (
  id TEXT NOT NULL,
  user_id TEXT NOT NULL,
  amount_cents INTEGER DEFAULT '0' NOT NULL,
  currency VARCHAR(10) DEFAULT 'usd' NOT NULL,
  status VARCHAR(50),
  stripe_invoice_id VARCHAR(255),
  period_start TIMESTAMPTZ,
  period_end TIMESTAMPTZ,
  pdf_url TEXT,
  paid_at TIMESTAMPTZ,
  created_at TIMESTAMPTZ DEFAULT now() NOT NULL,
  PRIMARY KEY (id),
  FOREIGN KEY (user_id) REFERENCES users (id) ON DELETE CASCADE
);
CREATE INDEX ix_cloud_invoices_user ON cloud_invoices (user_id);

CREATE TABLE cloud_notification_preferences (
  user_id TEXT NOT NULL,
  email_billing BOOLEAN DEFAULT 'true' NOT NULL,
  email_security BOOLEAN DEFAULT 'true' NOT NULL,
  email_product_updates BOOLEAN DEFAULT 'true' NOT NULL,
  updated_at TIMESTAMPTZ DEFAULT now() NOT NULL,
  PRIMARY KEY (user_id),
  FOREIGN KEY (user_id) REFERENCES users (id) ON DELETE CASCADE
);

-- Set-up: projects, state, providers. Not in a home's SQLite database.
CREATE TABLE projects (
  slug TEXT NOT NULL,
  name TEXT NOT NULL,
  environment TEXT DEFAULT 'development' NOT NULL,
  allowed_origins TEXT DEFAULT '' NOT NULL,
  status TEXT DEFAULT 'active' NOT NULL,
  default_model TEXT,
  config JSONB DEFAULT '{}' NOT NULL,
  created_at TIMESTAMPTZ DEFAULT now(),
  updated_at TIMESTAMPTZ DEFAULT now(),
  PRIMARY KEY (slug)
);

CREATE TABLE setup_state (
  id INTEGER DEFAULT '1' NOT NULL,
  project_id TEXT DEFAULT 'default' NOT NULL,
  org_name TEXT NOT NULL,
  org_slug TEXT NOT NULL,
  admin_email TEXT NOT NULL,
  app_url TEXT DEFAULT '' NOT NULL,
  contact_email TEXT DEFAULT '' NOT NULL,
  timezone VARCHAR(100) DEFAULT 'UTC' NOT NULL,
  industry TEXT DEFAULT '' NOT NULL,
  team_size TEXT DEFAULT '' NOT NULL,
  admin_password_hash TEXT DEFAULT '' NOT NULL,
  admin_display_name TEXT DEFAULT '' NOT NULL,
  session_invalidated_at TIMESTAMPTZ,
  completed_at TIMESTAMPTZ DEFAULT now(),
  PRIMARY KEY (id),
  CONSTRAINT setup_state_single_row CHECK (id = 1)
);

CREATE TABLE llm_provider_configs (
  id TEXT NOT NULL,
  project_id TEXT DEFAULT 'default' NOT NULL,
  provider_name TEXT NOT NULL,
  provider_type TEXT DEFAULT 'hosted' NOT NULL,
  display_name TEXT DEFAULT '' NOT NULL,
  config JSONB DEFAULT '{}' NOT NULL,
  status TEXT DEFAULT 'not_configured' NOT NULL,
  created_at TIMESTAMPTZ DEFAULT now(),
  PRIMARY KEY (id)
);
CREATE INDEX ix_llm_provider_configs_project_id ON llm_provider_configs (project_id);
