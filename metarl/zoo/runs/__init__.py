"""Run folders and what belongs to them: what lies in one, who may write there, and how a run goes on."""
