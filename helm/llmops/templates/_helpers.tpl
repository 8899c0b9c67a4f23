{{- define "llmops.fullname" -}}
{{- if .Values.fullnameOverride -}}{{ .Values.fullnameOverride }}
{{- else if contains .Chart.Name .Release.Name -}}{{ .Release.Name | trunc 50 | trimSuffix "-" }}
{{- else -}}{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 50 | trimSuffix "-" }}
{{- end -}}
{{- end -}}

{{- /* Labels that select: (list $ "component") */ -}}
{{- define "llmops.selector" -}}
app.kubernetes.io/part-of: llmops
app.kubernetes.io/instance: {{ (index . 0).Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{- define "llmops.labels" -}}
{{ include "llmops.selector" . }}
app.kubernetes.io/version: {{ (index . 0).Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ (index . 0).Release.Service }}
helm.sh/chart: {{ (index . 0).Chart.Name }}-{{ (index . 0).Chart.Version }}
{{- end -}}

{{- /* An image: (list $ "operator") */ -}}
{{- define "llmops.image" -}}
{{- $image := index (index . 0).Values.images (index . 1) -}}
{{ $image.repository }}:{{ $image.tag | default (index . 0).Chart.AppVersion }}
{{- end -}}

{{- define "llmops.pullSecrets" -}}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
{{- range . }}
  - name: {{ . }}
{{- end }}
{{- end }}
{{- end -}}

{{- /* What the pod security level `restricted` asks for, and a user that all images know. */ -}}
{{- define "llmops.podSecurity" -}}
automountServiceAccountToken: false
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "llmops.containerSecurity" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
{{- end -}}

{{- define "llmops.connectionSecret" -}}
{{- .Values.connection.existingSecret | default (printf "%s-operator-connection" (include "llmops.fullname" .)) -}}
{{- end -}}

{{- /* Empty when there is no Secret: neither made here nor named. */ -}}
{{- define "llmops.hasConnection" -}}
{{- if or .Values.connection.existingSecret .Values.qdrant.enabled }}yes{{ end -}}
{{- end -}}

{{- define "llmops.mlflowUri" -}}
{{- if .Values.mlflow.enabled -}}http://{{ include "llmops.fullname" . }}-mlflow.{{ .Release.Namespace }}.svc:5000
{{- else -}}{{ .Values.mlflow.trackingUri }}
{{- end -}}
{{- end -}}

{{- define "llmops.qdrantUrl" -}}
{{- if .Values.qdrant.enabled -}}http://{{ include "llmops.fullname" . }}-qdrant.{{ .Release.Namespace }}.svc:6333
{{- else -}}{{ required "qdrant.url: give the address of a Qdrant server, or set qdrant.enabled" .Values.qdrant.url }}
{{- end -}}
{{- end -}}

{{- /* A claim of the operator's configuration. */ -}}
{{- define "llmops.claim" -}}
{{- with .storageClassName }}
storageClassName: {{ . | quote }}
{{- end }}
{{- with .size }}
size: {{ . | quote }}
{{- end }}
accessModes: {{ toJson .accessModes }}
{{- end -}}

{{- define "llmops.operatorConfig" -}}
images:
  services: {{ include "llmops.image" (list . "services") | quote }}
  engine: {{ include "llmops.image" (list . "engine") | quote }}
imagePullPolicy: {{ .Values.imagePullPolicy }}
imagePullSecrets: {{ toJson .Values.imagePullSecrets }}
{{- if include "llmops.mlflowUri" . }}
mlflow:
  trackingUri: {{ include "llmops.mlflowUri" . | quote }}
  {{- with .Values.mlflow.externalUrl }}
  externalUrl: {{ . | quote }}
  {{- end }}
{{- end }}
qdrant:
  url: {{ include "llmops.qdrantUrl" . | quote }}
{{- if include "llmops.hasConnection" . }}
connectionSecret:
  name: {{ include "llmops.connectionSecret" . }}
{{- end }}
state:
  {{- include "llmops.claim" .Values.workloads.state | nindent 2 }}
cache:
{{- with .Values.workloads.cache }}
{{- if eq .kind "EmptyDir" }}
  emptyDir: {{ if .size }}{sizeLimit: {{ .size | quote }}}{{ else }}{}{{ end }}
{{- else }}
  persistentVolumeClaim:
    {{- include "llmops.claim" . | nindent 4 }}
{{- end }}
{{- end }}
podTemplate: {{ toJson .Values.workloads.podTemplate }}
networkPolicies: {{ .Values.networkPolicy.enabled }}
watchNamespaces: {{ toJson .Values.operator.watchNamespaces }}
leaderElection:
  leaseName: {{ include "llmops.fullname" . }}-operator
  namespace: {{ .Release.Namespace }}
  leaseSeconds: {{ .Values.operator.leaderElection.leaseSeconds }}
  renewSeconds: {{ .Values.operator.leaderElection.renewSeconds }}
workers: {{ .Values.operator.workers }}
resyncSeconds: {{ .Values.operator.resyncSeconds }}
port: 8080
{{- end -}}
