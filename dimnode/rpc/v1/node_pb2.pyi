from dimnode.rpc.v1 import common_pb2 as _common_pb2
from google.protobuf import struct_pb2 as _struct_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class StatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StatusResponse(_message.Message):
    __slots__ = ("status",)
    STATUS_FIELD_NUMBER: _ClassVar[int]
    status: _struct_pb2.Struct
    def __init__(self, status: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ...) -> None: ...

class InviteRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class InviteResponse(_message.Message):
    __slots__ = ("invite",)
    INVITE_FIELD_NUMBER: _ClassVar[int]
    invite: str
    def __init__(self, invite: _Optional[str] = ...) -> None: ...

class GetElectorateRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ChangeElectorateRequest(_message.Message):
    __slots__ = ("peer", "action")
    PEER_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    peer: str
    action: str
    def __init__(self, peer: _Optional[str] = ..., action: _Optional[str] = ...) -> None: ...

class ElectorateResponse(_message.Message):
    __slots__ = ("electorate",)
    ELECTORATE_FIELD_NUMBER: _ClassVar[int]
    electorate: _struct_pb2.Struct
    def __init__(self, electorate: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ...) -> None: ...

class ListRegistryRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListRegistryResponse(_message.Message):
    __slots__ = ("nodes",)
    NODES_FIELD_NUMBER: _ClassVar[int]
    nodes: _containers.RepeatedCompositeFieldContainer[_common_pb2.NodeInfo]
    def __init__(self, nodes: _Optional[_Iterable[_Union[_common_pb2.NodeInfo, _Mapping]]] = ...) -> None: ...

class NodeStatsRequest(_message.Message):
    __slots__ = ("node",)
    NODE_FIELD_NUMBER: _ClassVar[int]
    node: str
    def __init__(self, node: _Optional[str] = ...) -> None: ...

class NodeStatsResponse(_message.Message):
    __slots__ = ("stats",)
    STATS_FIELD_NUMBER: _ClassVar[int]
    stats: _struct_pb2.Struct
    def __init__(self, stats: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ...) -> None: ...

class AddModelFileRequest(_message.Message):
    __slots__ = ("path", "id", "licence", "batch_axis", "form", "sign")
    PATH_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    LICENCE_FIELD_NUMBER: _ClassVar[int]
    BATCH_AXIS_FIELD_NUMBER: _ClassVar[int]
    FORM_FIELD_NUMBER: _ClassVar[int]
    SIGN_FIELD_NUMBER: _ClassVar[int]
    path: str
    id: str
    licence: str
    batch_axis: int
    form: str
    sign: bool
    def __init__(self, path: _Optional[str] = ..., id: _Optional[str] = ..., licence: _Optional[str] = ..., batch_axis: _Optional[int] = ..., form: _Optional[str] = ..., sign: _Optional[bool] = ...) -> None: ...

class AddModelFileResponse(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: _common_pb2.ModelInfo
    def __init__(self, model: _Optional[_Union[_common_pb2.ModelInfo, _Mapping]] = ...) -> None: ...

class DescribeModelRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class DescribeModelResponse(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: _struct_pb2.Struct
    def __init__(self, model: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ...) -> None: ...

class CheckModelRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class CheckModelResponse(_message.Message):
    __slots__ = ("report",)
    REPORT_FIELD_NUMBER: _ClassVar[int]
    report: _struct_pb2.Struct
    def __init__(self, report: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ...) -> None: ...

class RemoveModelRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class RemoveModelResponse(_message.Message):
    __slots__ = ("report",)
    REPORT_FIELD_NUMBER: _ClassVar[int]
    report: _struct_pb2.Struct
    def __init__(self, report: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ...) -> None: ...

class ListLocalModelsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListLocalModelsResponse(_message.Message):
    __slots__ = ("models",)
    MODELS_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[_common_pb2.ModelInfo]
    def __init__(self, models: _Optional[_Iterable[_Union[_common_pb2.ModelInfo, _Mapping]]] = ...) -> None: ...

class AddCabinetRequest(_message.Message):
    __slots__ = ("name", "path", "policy")
    NAME_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    name: str
    path: str
    policy: str
    def __init__(self, name: _Optional[str] = ..., path: _Optional[str] = ..., policy: _Optional[str] = ...) -> None: ...

class AddCabinetResponse(_message.Message):
    __slots__ = ("cabinet",)
    CABINET_FIELD_NUMBER: _ClassVar[int]
    cabinet: _common_pb2.CabinetInfo
    def __init__(self, cabinet: _Optional[_Union[_common_pb2.CabinetInfo, _Mapping]] = ...) -> None: ...

class ListCabinetsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListCabinetsResponse(_message.Message):
    __slots__ = ("cabinets",)
    CABINETS_FIELD_NUMBER: _ClassVar[int]
    cabinets: _containers.RepeatedCompositeFieldContainer[_common_pb2.CabinetInfo]
    def __init__(self, cabinets: _Optional[_Iterable[_Union[_common_pb2.CabinetInfo, _Mapping]]] = ...) -> None: ...

class ContentResponse(_message.Message):
    __slots__ = ("document",)
    DOCUMENT_FIELD_NUMBER: _ClassVar[int]
    document: _struct_pb2.Struct
    def __init__(self, document: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ...) -> None: ...

class AddContentRequest(_message.Message):
    __slots__ = ("path", "pin", "reason")
    PATH_FIELD_NUMBER: _ClassVar[int]
    PIN_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    path: str
    pin: bool
    reason: str
    def __init__(self, path: _Optional[str] = ..., pin: _Optional[bool] = ..., reason: _Optional[str] = ...) -> None: ...

class GetContentRequest(_message.Message):
    __slots__ = ("cid", "path")
    CID_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    cid: str
    path: str
    def __init__(self, cid: _Optional[str] = ..., path: _Optional[str] = ...) -> None: ...

class PinContentRequest(_message.Message):
    __slots__ = ("cid", "reason", "direct")
    CID_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    DIRECT_FIELD_NUMBER: _ClassVar[int]
    cid: str
    reason: str
    direct: bool
    def __init__(self, cid: _Optional[str] = ..., reason: _Optional[str] = ..., direct: _Optional[bool] = ...) -> None: ...

class UnpinContentRequest(_message.Message):
    __slots__ = ("cid",)
    CID_FIELD_NUMBER: _ClassVar[int]
    cid: str
    def __init__(self, cid: _Optional[str] = ...) -> None: ...

class ListPinsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class CollectGarbageRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ExportArchiveRequest(_message.Message):
    __slots__ = ("cids", "path")
    CIDS_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    cids: _containers.RepeatedScalarFieldContainer[str]
    path: str
    def __init__(self, cids: _Optional[_Iterable[str]] = ..., path: _Optional[str] = ...) -> None: ...

class ImportArchiveRequest(_message.Message):
    __slots__ = ("path", "pin", "reason")
    PATH_FIELD_NUMBER: _ClassVar[int]
    PIN_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    path: str
    pin: bool
    reason: str
    def __init__(self, path: _Optional[str] = ..., pin: _Optional[bool] = ..., reason: _Optional[str] = ...) -> None: ...

class StoreStatisticsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ResolveStateRequest(_message.Message):
    __slots__ = ("path", "after", "limit")
    PATH_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    path: str
    after: str
    limit: int
    def __init__(self, path: _Optional[str] = ..., after: _Optional[str] = ..., limit: _Optional[int] = ...) -> None: ...

class WatchEventsRequest(_message.Message):
    __slots__ = ("kinds", "follow")
    KINDS_FIELD_NUMBER: _ClassVar[int]
    FOLLOW_FIELD_NUMBER: _ClassVar[int]
    kinds: _containers.RepeatedScalarFieldContainer[str]
    follow: bool
    def __init__(self, kinds: _Optional[_Iterable[str]] = ..., follow: _Optional[bool] = ...) -> None: ...

class EventResponse(_message.Message):
    __slots__ = ("event",)
    EVENT_FIELD_NUMBER: _ClassVar[int]
    event: _struct_pb2.Struct
    def __init__(self, event: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ...) -> None: ...
