//! What the Kubernetes API says, from the API server or from manifests.
