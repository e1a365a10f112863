"""What an input of an operation is for, by the name that TensorFlow's registry gives it."""

from __future__ import annotations

from collections.abc import Mapping

STATISTICS = frozenset(["mean", "variance"])  # the roles of what batch normalisation measured
PRODUCTS = frozenset(["kernel", "table"])  # the roles of what makes a layer: before the first, only images are prepared

_TABLE = """
Conv2D Conv3D Conv DepthwiseConv2dNative Dilation2D                   filter=kernel
Conv2DBackpropInput DepthwiseConv2dNativeBackpropInput                filter=kernel
Conv3DBackpropInput Conv3DBackpropInputV2                             filter=kernel
MatMul SparseMatMul SparseTensorDenseMatMul                           a=kernel b=kernel
BatchMatMul BatchMatMulV2 BatchMatMulV3                               x=kernel y=kernel
Einsum                                                                inputs=kernel
Gather GatherV2 GatherNd                                              params=table
SparseSegmentSum SparseSegmentMean SparseSegmentSqrtN                 data=table
SparseSegmentSumWithNumSegments SparseSegmentMeanWithNumSegments      data=table
SparseSegmentSqrtNWithNumSegments                                     data=table
BiasAdd BiasAddV1                                                     bias=bias
FusedBatchNorm FusedBatchNormV2 FusedBatchNormV3                      scale=scale offset=offset mean=mean variance=variance
BatchNormWithGlobalNormalization                                      gamma=scale beta=offset m=mean v=variance
LSTMBlockCell BlockLSTM BlockLSTMV2                                   w=kernel b=bias wci=peephole wcf=peephole wco=peephole
GRUBlockCell                                                          w_ru=kernel w_c=kernel b_ru=bias b_c=bias
CudnnRNN CudnnRNNV2 CudnnRNNV3                                        params=kernel
_FusedConv2D _FusedDepthwiseConv2dNative                              filter=kernel args=bias
_FusedMatMul                                                          a=kernel b=kernel args=bias
FakeQuantWithMinMaxVars FakeQuantWithMinMaxVarsPerChannel             min=range max=range
QuantizeAndDequantizeV2 QuantizeAndDequantizeV3 QuantizeAndDequantizeV4 input_min=range input_max=range
"""


def _parse() -> dict[str, Mapping[str, str]]:
    found: dict[str, Mapping[str, str]] = {}
    for line in _TABLE.strip().splitlines():
        words = line.split()
        roles = dict(word.split("=") for word in words if "=" in word)
        found |= {word: roles for word in words if "=" not in word}
    return found


ROLES: Mapping[str, Mapping[str, str]] = _parse()

# Operation -> the inputs whose values it passes on; the others say how (a shape, an axis, a condition).
_VALUES = {
    0: """
    Identity RefIdentity Snapshot StopGradient PreventGradient GuaranteeConst EnsureShape CheckNumerics Enter RefEnter Exit
    RefExit NextIteration RefNextIteration Switch RefSwitch Cast Transpose ConjugateTranspose Reshape ExpandDims Squeeze
    Slice StridedSlice SplitV Unpack Pad PadV2 MirrorPad Reverse ReverseV2 Tile BroadcastTo Bitcast
    FakeQuantWithMinMaxVars FakeQuantWithMinMaxArgs FakeQuantWithMinMaxVarsPerChannel
    QuantizeAndDequantize QuantizeAndDequantizeV2 QuantizeAndDequantizeV3 QuantizeAndDequantizeV4
    """,
    1: "Split",
}
VALUE_INPUT: Mapping[str, int] = {op: place for place, text in _VALUES.items() for op in text.split()}
# Operations that pass all their floating-point inputs on.
JOINS = frozenset(["Concat", "ConcatV2", "Pack", "IdentityN", "Merge", "RefMerge", "_Arg", "_Loop", "_Ret"])
_SAME_SHAPE = """
    Identity RefIdentity Snapshot StopGradient PreventGradient GuaranteeConst EnsureShape CheckNumerics Enter RefEnter Exit
    RefExit NextIteration Switch RefSwitch Merge RefMerge Cast _Arg _Loop _Ret FakeQuantWithMinMaxVars
    FakeQuantWithMinMaxArgs FakeQuantWithMinMaxVarsPerChannel QuantizeAndDequantize QuantizeAndDequantizeV2
    QuantizeAndDequantizeV3 QuantizeAndDequantizeV4
"""
SAME_SHAPE = frozenset(_SAME_SHAPE.split())
# Operations that ask for the shape of a tensor, or only check it: its values do not matter.
NO_VALUE = frozenset([
    "Shape", "ShapeN", "Size", "Rank", "ZerosLike", "OnesLike", "NoOp", "Assert", "Print", "PrintV2", "VariableShape",
])  # fmt: skip
ADDS = frozenset(["Add", "AddV2", "Sub", "AddN"])
SCALES = frozenset(["Mul", "RealDiv", "Div"])
ROOTS = frozenset(["Rsqrt", "Sqrt", "Pow"])
SPECTRA = frozenset(["RFFT", "RFFT2D", "FFT", "FFT2D", "ComplexAbs", "AudioSpectrogram", "Mfcc"])
CHOICES = ("NonMaxSuppression", "TopK", "ArgMax", "ArgMin", "Where")  # which computed things are looked up
# Operations that compute with integers: there is no gradient through them.
INTEGER_PRODUCTS = ("QuantizedConv2D", "QuantizedDepthwiseConv2D", "QuantizedMatMul", "QuantizedBiasAdd", "UniformQuantized",
                    "_QuantizedConv2D", "_QuantizedMatMul", "QuantizedBatchNorm", "_QuantizedDepthwise")  # fmt: skip
