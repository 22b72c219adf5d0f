// Every file here compares tensors with goldens.
@_exported import LayerTestSupport
