{{/* What every container of the controller runs with: no privilege of any kind. */}}
{{- define "rbd-csi.unprivileged" -}}
allowPrivilegeEscalation: false
capabilities:
  drop: [ALL]
privileged: false
readOnlyRootFilesystem: true
{{- end }}

{{/*
A sidecar's container. Called with a dict: root, name, values, and args, its own arguments as text.
*/}}
{{- define "rbd-csi.sidecar" -}}
{{- $election := .root.Values.sidecars.leaderElection -}}
- name: {{ .name }}
  image: {{ .values.image.repository }}:{{ .values.image.tag }}
  imagePullPolicy: {{ .root.Values.sidecars.pullPolicy }}
  args:
    - --csi-address=unix:///csi/csi.sock
    - --v={{ .root.Values.logLevel }}
    - --http-endpoint=:{{ .values.httpPort }}
    - --leader-election
    - --leader-election-namespace=$(NAMESPACE)
    - --leader-election-lease-duration={{ $election.leaseDuration }}
    - --leader-election-renew-deadline={{ $election.renewDeadline }}
    - --leader-election-retry-period={{ $election.retryPeriod }}
    - --kube-api-qps={{ .values.kubeAPIQPS }}
    - --kube-api-burst={{ mul 2 .values.kubeAPIQPS }}
    {{- .args | nindent 4 }}
    {{- range .values.extraArgs }}
    - {{ . | quote }}
    {{- end }}
  env:
    - name: NAMESPACE
      valueFrom:
        fieldRef:
          fieldPath: metadata.namespace
    - name: POD_NAME
      valueFrom:
        fieldRef:
          fieldPath: metadata.name
  ports:
    - name: {{ .name }}
      containerPort: {{ .values.httpPort }}
      protocol: TCP
  # It begins to answer when the driver does, and fails when it has lost its lead without noticing.
  livenessProbe:
    httpGet:
      path: /healthz/leader-election
      port: {{ .name }}
    initialDelaySeconds: 10
    periodSeconds: 20
    timeoutSeconds: 10
    failureThreshold: 3
  resources:
    {{- toYaml .values.resources | nindent 4 }}
  securityContext:
    {{- include "rbd-csi.unprivileged" . | nindent 4 }}
  volumeMounts:
    - name: csi
      mountPath: /csi
{{- end }}

{{/*
The sidecar that tells programs what changed between snapshots. It is none of those above: nobody has to lead, and it
serves others than Kubernetes.
*/}}
{{- define "rbd-csi.snapshotMetadata" -}}
{{- $values := .Values.sidecars.snapshotMetadata -}}
- name: snapshot-metadata
  image: {{ $values.image.repository }}:{{ $values.image.tag }}
  imagePullPolicy: {{ .Values.sidecars.pullPolicy }}
  args:
    - --csi-address=unix:///csi/csi.sock
    - --v={{ .Values.logLevel }}
    - --http-endpoint=:{{ $values.httpPort }}
    - --port={{ $values.grpcPort }}
    - --tls-cert=/etc/snapshot-metadata/tls.crt
    - --tls-key=/etc/snapshot-metadata/tls.key
    - --audience={{ .Values.snapshotMetadata.audience | default .Values.driverName }}
    - --max-streaming-duration-min={{ $values.maxStreamingMinutes }}
    - --kube-api-qps={{ $values.kubeAPIQPS }}
    - --kube-api-burst={{ mul 2 $values.kubeAPIQPS }}
    {{- range $values.extraArgs }}
    - {{ . | quote }}
    {{- end }}
  ports:
    - name: metadata
      containerPort: {{ $values.httpPort }}
      protocol: TCP
    - name: metadata-grpc
      containerPort: {{ $values.grpcPort }}
      protocol: TCP
  readinessProbe:
    httpGet:
      path: /health
      port: metadata
    periodSeconds: 10
    timeoutSeconds: 10
  resources:
    {{- toYaml $values.resources | nindent 4 }}
  securityContext:
    {{- include "rbd-csi.unprivileged" . | nindent 4 }}
  volumeMounts:
    - name: csi
      mountPath: /csi
    - name: snapshot-metadata-tls
      mountPath: /etc/snapshot-metadata
      readOnly: true
{{- end }}
